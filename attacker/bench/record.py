"""Measurements as JSON and as a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from attacker.audit.execution.machine import this_machine, versions
from attacker.bench.contenders import PLAIN
from attacker.bench.measure import SpeedRow


def as_json(rows: Sequence[SpeedRow], *, base: str = PLAIN) -> list[dict[str, Any]]:
    """Every field of every row, and the ratios to the row called ``base``, null where there is none."""
    reference = next((row for row in rows if row.name == base), None)
    return [
        {
            **asdict(row),
            "image_iterations_per_second": row.image_iterations_per_second,
            "times_faster": None if reference is None else row.times_faster(reference),
            "times_less_cpu": None if reference is None else row.times_less_cpu(reference),
        }
        for row in rows
    ]


def record(
    models: Mapping[str, Sequence[SpeedRow]], settings: Mapping[str, Any], *, base: str = PLAIN
) -> dict[str, Any]:
    """What is written to a file: settings, machine, versions and the rows of every model."""
    return {
        "settings": dict(settings),
        "machine": this_machine().model_dump(mode="json"),
        "versions": versions(),
        "base": base,
        "models": {name: as_json(rows, base=base) for name, rows in models.items()},
    }


def table(model: str, rows: Sequence[SpeedRow], *, base: str = PLAIN) -> Table:
    """One line for each contender; milliseconds are for one iteration of one candidate."""
    reference = next((row for row in rows if row.name == base), None)
    title = f"{model}: {rows[0].iterations} and {2 * rows[0].iterations} iterations"
    made = Table(title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    made.add_column("", no_wrap=True)
    for heading in ("ms", "±", "CPU ms", "whole ms", "img·it/s", "MiB", "faster", "PSNR", "loss"):
        made.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        if row.wall is None:
            made.add_row(row.name, "left out")
            continue
        faster = None if reference is None else row.times_faster(reference)
        half = (row.wall.most - row.wall.least) / 2
        made.add_row(
            row.name,
            _number(row.wall.median, ".3f"),
            f"{half / row.wall.median:.0%}" if row.wall.median > 0 else "–",
            _number(None if row.cpu is None else row.cpu.median, ".3f"),
            _number(None if row.whole is None else row.whole.median, ".3f"),
            _number(row.image_iterations_per_second, ",.0f"),
            _number(row.peak_mib, ",.1f"),
            "–" if faster is None else f"{faster:.1f}x",
            _number(row.psnr, ".1f"),
            _number(row.matching_loss, ".1e"),
        )
    return made


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
