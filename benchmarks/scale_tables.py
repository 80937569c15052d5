"""Tables of docs/results/scale.md, and their cost model, from what `benchmarks/thousand_clients.py` measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]

FEDERATIONS = (1_000, 10_000, 100_000)
RESERVOIR = 120
PAYLOADS = (("LeNet, 32x32", None), ("ResNet20", 1_096_336), ("ResNet18", 44_700_000))
"""Bytes of one reply; None for that of the measured runs."""


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """What an update costs; fitted to the runs of the file, linear in the number of updates.

    Attributes:
        payload: Bytes of one reply in the measured runs.
        overhead: Bytes on the tape beside the payload, for each update.
        seconds: To write an update of that payload.
        copies: Payloads of memory that the server's process grows by for each reply of a round, without the
            interceptor.
        choosing: Seconds to choose among a hundred thousand updates.
        seconds_of_a_byte: More of each byte of a larger payload; None where no second payload was measured.
    """

    payload: int
    overhead: float
    seconds: float
    copies: float
    choosing: float
    seconds_of_a_byte: float | None = None

    def writing(self, updates: float, payload: float) -> float | None:
        """Seconds in which nothing else happens in the server; None where the payload's part is not known."""
        if payload == self.payload:
            return updates * self.seconds
        if self.seconds_of_a_byte is None:
            return None
        return updates * (self.seconds + self.seconds_of_a_byte * (payload - self.payload))

    def tape_bytes(self, updates: float, payload: float) -> float:
        """Of a round: what was sent, once, and the updates."""
        return payload + updates * (payload + self.overhead)

    def memory(self, clients: float, payload: float) -> float:
        """What the replies of a round take in the server, by Flower alone."""
        return clients * self.copies * payload


def fitted(report: Row) -> CostModel:
    """The model of the LeNet's runs.

    Raises:
        StatisticsError: If runs of several sizes are not in the file yet.
    """
    rows = [row for row in report["rows"] if row["model"] == "lenet" and row["clients"] >= 100]
    whole = [row for row in rows if row["listening"] == "all"]
    payload = rows[0]["payload_bytes"]
    beside = [(row["tape_bytes"] - payload * (row["kept"] + len(row["rounds"]))) / row["kept"] for row in whole]
    off = [row for row in rows if row["listening"] == "off"]
    slope = statistics.linear_regression(
        [row["clients"] for row in off], [max(row["peak_rss_bytes"]) - row["rss_bytes_after_round"][0] for row in off]
    ).slope
    return CostModel(
        payload=payload,
        overhead=statistics.mean(beside),
        seconds=statistics.mean(row["seconds_of_an_update"] for row in whole),
        copies=slope / payload,
        choosing=report["choosing"]["seconds"],
        seconds_of_a_byte=_seconds_of_a_byte(report.get("server_alone", [])),
    )


def _seconds_of_a_byte(alone: Sequence[Row]) -> float | None:
    """Of a further byte in an update, by the rounds of two models that a server alone handled."""
    seconds = {(row["payload_bytes"], row["clients"], row["listening"]): row["seconds"] for row in alone}
    cost = {
        payload: (whole - seconds[payload, clients, "off"]) / clients
        for (payload, clients, listening), whole in seconds.items()
        if listening == "all" and (payload, clients, "off") in seconds
    }
    if len(cost) < 2:
        return None
    (small, less), *_, (large, more) = sorted(cost.items())
    return (more - less) / (large - small)


def tables(report: Row) -> dict[str, str]:
    """By the name of their marks in the page."""
    model = fitted(report)
    made = {"measured": measured(report), "cost model": costs(model), "fitted": words(report, model)}
    return made | ({"server alone": server_alone(report)} if report.get("server_alone") else {})


def measured(report: Row) -> str:
    """One line for each run."""
    lines = []
    for row in report["rows"]:
        base = row["rss_bytes_after_round"][0]
        above = max(row["peak_rss_bytes"][1:]) - base
        kept = f"{row['kept']:,} of {row['seen']:,}" if "kept" in row else "–"
        tape = f"{row['tape_bytes'] / 1e6:.1f}" if "kept" in row else "–"
        writing = f"{1e3 * row['seconds_of_an_update']:.1f}" if "kept" in row else "–"
        lines.append(
            f"| {row['model']} | {row['clients']:,} | {row['listening']} | {_seconds(row['rounds'])} "
            f"| {base / 1e6:.0f} | {above / 1e6:.0f} | {kept} | {tape} | {writing} |"
        )
    head = (
        "| model | clients | interceptor | seconds of each round | server at the start, MB | above it at the most, MB "
        "| updates kept | tape, MB | ms an update |\n| --- | ---: | --- | --- | ---: | ---: | ---: | ---: | ---: |"
    )
    return "\n".join([head, *lines])


def server_alone(report: Row) -> str:
    """One line for each round of a server without clients."""
    lines = [
        f"| {row['model']} | {row['clients']:,} | {row['listening']} | {_bytes(row['clients'] * row['payload_bytes'])} "
        f"| {_bytes(row['added_bytes'])} | {row['seconds']:.1f} | {_bytes(row['tape_bytes']) if row['kept'] else '–'} |"
        for row in report["server_alone"]
    ]
    head = (
        "| model | replies | interceptor | arrays of all replies | beside them, at the most | seconds | tape |\n"
        "| --- | ---: | --- | ---: | ---: | ---: | ---: |"
    )
    return "\n".join([head, *lines])


def costs(model: CostModel) -> str:
    """A round of federations that nobody ran."""
    lines = []
    for name, given in PAYLOADS:
        payload = model.payload if given is None else given
        for clients in FEDERATIONS:
            all_bytes, some_bytes = (model.tape_bytes(count, payload) for count in (clients, min(RESERVOIR, clients)))
            lines.append(
                f"| {name} | {clients:,} | {_bytes(model.memory(clients, payload))} | {_bytes(all_bytes)} "
                f"| {_time(model.writing(clients, payload))} | {_bytes(some_bytes)} "
                f"| {_time(model.writing(RESERVOIR, payload))} |"
            )
    head = (
        "| model | clients | Flower's memory | tape of all | to write it | tape of 120 | to write it |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    return "\n".join([head, *lines])


def words(report: Row, model: CostModel) -> str:
    """The fitted numbers and the date, in sentences."""
    dates = sorted({row["date"] for row in report["rows"]})
    loads = [row["load_before"] for row in report["rows"]]
    return (
        f"Measured {' to '.join(sorted({dates[0], dates[-1]}))} on {report['machine']['cores']} cores beside other "
        f"work (load {min(loads):.0f} to {max(loads):.0f} before a run). A reply of the LeNet has {model.payload:,} "
        f"bytes. Fitted: {model.overhead:,.0f} bytes on the tape beside each payload, {1e3 * model.seconds:.1f} ms to "
        f"write an update, {model.copies:.1f} payloads of memory in the server for each reply of a round without the "
        f"interceptor, and {model.choosing:.2f} s to choose {RESERVOIR} of {report['choosing']['among']:,} updates."
    )


def _seconds(rounds: Sequence[float]) -> str:
    return ", ".join(f"{one:.1f}" for one in rounds)


def _bytes(value: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e3:.3g} kB"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "not measured"
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.2g} s"
