"""Figures and page of the comparison of influence with measured errors."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field

from attacker import wording
from attacker.audit.execution.files import png_bytes
from attacker.audit.execution.machine import this_machine, versions
from attacker.audit.record.schema import Count, Entry, Machine, Number, Setting
from attacker.experiments.hybrid import figures
from attacker.experiments.i2f.experiment import Influenced, Influences, Measured, MeasuredInfluence
from attacker.experiments.precode.page import svg_uri, templates, write_outcome
from attacker.experiments.store import Store
from attacker.metrics.intervals import rank_correlation

SHOWN = 3
"""Images most and least at risk on the page."""
PREDICTORS: Mapping[str, Callable[[MeasuredInfluence, Measured], float | None]] = {
    "I2F": lambda image, measured: measured.i2f,
    "E-I2F": lambda image, measured: image.unit_rmse,
    "damped": lambda image, measured: measured.damped,
    "I_lb": lambda image, measured: measured.bound,
    "1/norm": lambda image, measured: 1 / image.gradient_norm,
}
"""What may tell which image is at risk."""

Made = Sequence[tuple[Influenced, MeasuredInfluence]]


class Correlation(Entry):
    """Spearman's rank correlation with the measured error over images."""

    name: str
    rho: Number | None
    interval: tuple[Number, Number] | None = Field(description="95 %, Bonett and Wright; null for few images")


class ChangeGroup(Entry):
    """Images whose gradient was changed in one way."""

    data: str
    model: str
    start: str
    change: str
    way: str
    images: Count
    rank: Count | None
    unknowns: Count
    largest: Number = Field(description="eigenvalue of JJ^T, median")
    unit_rmse: Number = Field(description="E-I2F for noise of standard deviation 1, median")
    i2f: Number | None = Field(description="median, RMSE of pixels")
    bound: Number = Field(description="I_lb, median")
    measured: Number = Field(description="median RMSE")
    least: Number
    most: Number
    ratio: Number | None = Field(description="median of I2F over the measured error")
    correlations: list[Correlation]


class InfluenceSummary(Entry):
    """The whole comparison."""

    format: Literal["fl-precode-influences"] = "fl-precode-influences"
    version: Literal[1] = 1
    created: str
    scale: str
    data: list[str]
    noise: list[ChangeGroup]
    random: list[ChangeGroup]
    pruning: list[ChangeGroup]
    models: list[ChangeGroup]
    settings: dict[str, Setting]
    versions: dict[str, str]
    machine: Machine
    seconds: Number


def finish_influences(comparison: Influences, folder: Path) -> tuple[InfluenceSummary, Path]:
    """Write ``results.json`` and the page.

    Returns:
        The figures, and where the page is.

    Raises:
        ValueError: If a piece is missing or was altered.
        OSError: If something cannot be written.
    """
    store = Store(folder)
    made = [(piece, store.result(piece, comparison.recipe(piece), MeasuredInfluence)) for piece in comparison.pieces()]
    summary = summarise_influences(comparison, made)
    template = templates(change_name=change_name, small=small).get_template("influences.html.j2")
    text = template.render(
        s=summary,
        headline=headline(summary),
        pictures=_pictures(comparison, summary, made),
        gallery=_gallery(comparison, made, store),
        stds=[change_name(f"noise:std={std:g}") for std in comparison.scale.stds],
    )
    return summary, write_outcome(summary, text, store.folder)


def summarise_influences(comparison: Influences, made: Made) -> InfluenceSummary:
    """The figures of a comparison from its pieces."""
    groups = {name: _groups([pair for pair in made if pair[0].part in parts]) for name, parts in _PARTS.items()}
    scale = comparison.scale
    return InfluenceSummary(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        scale=scale.name,
        data=list(comparison.data),
        settings={
            "seed": comparison.seed,
            "images": scale.images,
            "iterations": scale.iterations,
            "random_iterations": scale.random_iterations,
        },
        versions=versions(),
        machine=this_machine(),
        seconds=sum(image.seconds for _, image in made),
        noise=groups["noise"],
        random=groups["random"],
        pruning=groups["pruning"],
        models=groups["models"],
    )


_PARTS = {"noise": ("noise",), "random": ("random",), "pruning": ("pruning",), "models": ("starts", "models")}


def _groups(made: Made) -> list[ChangeGroup]:
    grouped: dict[tuple[str, str, str, str, str], list[tuple[Influenced, MeasuredInfluence, Measured]]] = {}
    for piece, image in made:
        for measured in image.changes:
            key = (piece.data, piece.model, piece.start, measured.change, piece.way)
            grouped.setdefault(key, []).append((piece, image, measured))
    return [_group(key, rows) for key, rows in grouped.items()]


def _group(
    key: tuple[str, str, str, str, str], rows: Sequence[tuple[Influenced, MeasuredInfluence, Measured]]
) -> ChangeGroup:
    measured = [change.rmse for _, _, change in rows]
    ratios = [change.i2f / change.rmse for _, _, change in rows if change.i2f is not None and change.rmse > 0]
    ranks = [image.rank for _, image, _ in rows if image.rank is not None]
    correlations = []
    for name, value in PREDICTORS.items():
        values = [value(image, change) for _, image, change in rows]
        known = [predicted for predicted in values if predicted is not None]
        correlation = rank_correlation(known, measured) if len(known) == len(measured) else None
        rho, interval = correlation if correlation is not None else (None, None)
        correlations.append(Correlation(name=name, rho=rho, interval=interval))
    i2f = [change.i2f for _, _, change in rows if change.i2f is not None]
    return ChangeGroup(
        data=key[0],
        model=key[1],
        start=key[2],
        change=key[3],
        way=key[4],
        images=len(rows),
        rank=min(ranks, default=None),
        unknowns=rows[0][1].unknowns,
        largest=statistics.median(image.largest for _, image, _ in rows),
        unit_rmse=statistics.median(image.unit_rmse for _, image, _ in rows),
        i2f=statistics.median(i2f) if i2f else None,
        bound=statistics.median(change.bound for _, _, change in rows),
        measured=statistics.median(measured),
        least=min(measured),
        most=max(measured),
        ratio=statistics.median(ratios) if ratios else None,
        correlations=correlations,
    )


def headline(summary: InfluenceSummary) -> str:
    """The page's first sentence, from the figures."""
    groups = [group for group in summary.noise if group.ratio is not None and group.data == summary.noise[0].data]
    ratios = sorted(group.ratio for group in groups if group.ratio is not None)
    exact = [rho for group in groups if (rho := _rho(group, "I2F")) is not None]
    loose = [rho for group in groups if (rho := _rho(group, "I_lb")) is not None]
    least, most = wording.figure(ratios[0]), wording.figure(ratios[-1])
    text = f"I2F is {least} to {most} times the error of an attack that converges"
    if exact and loose:
        text += (
            f", and orders images by risk with a rank correlation of {wording.figure(min(exact))} or more; the bound "
            f"I_lb does so with {wording.figure(statistics.median(loose))}"
        )
    return text + "."


def change_name(spec: str) -> str:
    """What is done to a gradient, in short.

    >>> change_name("noise:std=0.001"), change_name("prune:share=0.5")
    ('noise 0.001', 'pruning 0.5')
    """
    name, _, options = spec.partition(":")
    short = {"noise": "noise", "prune": "pruning"}
    return f"{short.get(name, name)} {float(options.partition('=')[2]):g}" if name in short else spec


def small(value: float | None) -> str:
    """A number over many decades, to two digits.

    >>> small(0.000123), small(15.2), small(None), small(1234.0)
    ('0.00012', '15', '–', '1200')
    """
    if value is None:
        return "–"
    if value != 0 and not 1e-4 <= abs(value) < 1e5:
        return f"{value:.1e}"
    rounded = float(f"{value:.2g}")
    return f"{rounded:.0f}" if abs(rounded) >= 10 else f"{rounded:.6f}".rstrip("0").rstrip(".")


def _rho(group: ChangeGroup, name: str) -> float | None:
    return next(correlation.rho for correlation in group.correlations if correlation.name == name)


def _pictures(comparison: Influences, summary: InfluenceSummary, made: Made) -> dict[str, tuple[str, str]]:
    noisy = [pair for pair in made if pair[0].part == "noise" and pair[0].data == comparison.data[0]]
    drawn = {
        "i2f": (figures.predicted(_points(noisy, "I2F"), "I2F"), "measured error against I2F, image by image"),
        "bound": (figures.predicted(_points(noisy, "I_lb"), "I_lb"), "measured error against the lower bound I_lb"),
    }
    shares = {float(group.change.partition("=")[2]): (group.i2f or 0.0, group.measured) for group in summary.pruning}
    if shares:
        drawn["pruning"] = (figures.pruned(shares), "predicted and measured error by share that is pruned")
    risk: dict[str, list[float]] = {}
    for piece, image in made:
        if piece.part in _PARTS["models"]:
            risk.setdefault(f"{wording.model_name(piece.model)}, {piece.start}", []).append(image.unit_rmse)
    drawn["risks"] = (figures.risks(risk), "E-I2F by model and initialisation, as in the table below")
    return {name: (svg_uri(svg), text) for name, (svg, text) in drawn.items()}


def _points(made: Made, predictor: str) -> dict[str, list[tuple[float, float]]]:
    points: dict[str, list[tuple[float, float]]] = {}
    for _, image in made:
        for measured in image.changes:
            value = PREDICTORS[predictor](image, measured)
            points.setdefault(change_name(measured.change), []).append((value or 0.0, measured.rmse))
    return points


def _gallery(
    comparison: Influences, made: Made, store: Store
) -> list[tuple[str, int, float, bytes, list[tuple[bytes, float]]]]:
    """The images most and least at risk by E-I2F: words, number, E-I2F, the image, and what noise leaves of it."""
    noisy = [pair for pair in made if pair[0].part == "noise" and pair[0].data == comparison.data[0]]
    ordered = sorted(noisy, key=lambda pair: pair[1].unit_rmse)
    count = min(SHOWN, len(ordered) // 2)
    marked: Iterable[tuple[str, tuple[Influenced, MeasuredInfluence]]] = [
        *(("most at risk", pair) for pair in ordered[:count]),
        *(("least at risk", pair) for pair in ordered[len(ordered) - count :]),
    ]
    rows = []
    for mark, (piece, image) in marked:
        kept = store.load(image.pictures)
        shots = [
            (png_bytes(kept[str(number)][0].clamp(0, 1)), measured.rmse)
            for number, measured in enumerate(image.changes)
        ]
        rows.append((mark, piece.image, image.unit_rmse, png_bytes(comparison.truth(piece)[0][0]), shots))
    return rows
