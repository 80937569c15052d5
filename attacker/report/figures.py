"""Coordinates of the page's charts; the template draws them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from attacker import wording
from attacker.audit.record.schema import AttackSummary, AuditRecord, FederationSummary

WIDTH, HEIGHT = 440, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 14, 12, 40
_MOST_TICKS = 8
_TOPS = (0.05, 0.1, 0.25, 0.5, 1.0)
_BINS = 20


@dataclass(frozen=True)
class Line:
    """One curve: style number, points as SVG writes them, and the points apart."""

    style: int
    path: str
    dots: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Dot:
    """One point: style number, place, and the ends of its whisker if it has one."""

    style: int
    x: float
    y: float
    whisker: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart with two axes.

    Attributes:
        label: What it shows, for those who do not see it.
        x_name: Name of the horizontal axis.
        y_name: Name of the vertical axis.
        x_ticks: Place and text.
        y_ticks: Place and text.
        lines: Curves.
        dots: Points that belong to no curve.
        faint: Whether the points are many and drawn small.
    """

    label: str
    x_name: str
    y_name: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    lines: tuple[Line, ...] = ()
    dots: tuple[Dot, ...] = ()
    faint: bool = False
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    bottom: int = HEIGHT - _BOTTOM
    top: int = _TOP


def across(low: float, high: float) -> Callable[[float], float]:
    """From a value to its place on the horizontal axis, which runs from ``low`` to ``high``."""
    span = (high - low) or 1
    return lambda value: round(_LEFT + (WIDTH - _LEFT - _RIGHT) * (value - low) / span, 1)


def up(high: float) -> Callable[[float], float]:
    """From a value to its place on the vertical axis, which runs from 0 to ``high``; larger ones lie at its end."""
    return lambda value: round(_TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - min(value, high) / high), 1)


def line(style: int, dots: Sequence[tuple[float, float]], *, marked: bool = True) -> Line:
    """A curve through places on the page; a dot on each where they are ``marked``."""
    return Line(style=style, path=" ".join(f"{a},{b}" for a, b in dots), dots=tuple(dots) if marked else ())


def _shares(place: Callable[[float], float]) -> tuple[tuple[float, str], ...]:
    return tuple((place(share / 100), f"{share} %") for share in (0, 25, 50, 75, 100))


def _whole(place: Callable[[float], float], low: int, high: int) -> tuple[tuple[float, str], ...]:
    step = -(-max(high - low, 1) // _MOST_TICKS)
    return tuple((place(number), str(number)) for number in range(low, high + 1, step))


def accuracy_chart(federations: Sequence[FederationSummary]) -> Chart | None:
    """Accuracy of each federation by round, 0 to 100 %; None when no accuracy is known."""
    rounds = [point.round for f in federations for point in f.accuracy if point.accuracy is not None]
    if not rounds:
        return None
    x, y = across(min(rounds), max(rounds)), up(1)
    ends = [
        f"{wording.defence_name(federation.defence)} ends at {wording.percent(federation.final_accuracy)}"
        for federation in federations
        if federation.final_accuracy is not None
    ]
    return Chart(
        label=f"Accuracy on test images by round: {'; '.join(ends)}",
        x_name="round",
        y_name="accuracy",
        x_ticks=_whole(x, min(rounds), max(rounds)),
        y_ticks=_shares(y),
        lines=tuple(
            line(
                style,
                [(x(point.round), y(point.accuracy)) for point in federation.accuracy if point.accuracy is not None],
            )
            for style, federation in enumerate(federations)
        ),
    )


def trade_chart(federations: Sequence[tuple[int, str, FederationSummary, AttackSummary]]) -> Chart | None:
    """Success of each federation's most successful attack over its final accuracy; None when no pair is known.

    Args:
        federations: Style, title, figures and that attack.
    """
    x, y = across(0, 1), up(1)
    dots, said = [], []
    for style, title, entry, best in federations:
        if entry.final_accuracy is None or best.success_rate is None or best.interval is None:
            continue
        low, high = best.interval
        dots.append(Dot(style, x(entry.final_accuracy), y(best.success_rate), (y(low), y(high))))
        said.append(
            f"{title}: accuracy {wording.percent(entry.final_accuracy)}, {wording.percent(best.success_rate)} "
            "reconstructed"
        )
    if not dots:
        return None
    return Chart(
        label=f"Images that were reconstructed over accuracy. {'; '.join(said)}",
        x_name="accuracy on test images",
        y_name="images that were reconstructed",
        x_ticks=_shares(x),
        y_ticks=_shares(y),
        dots=tuple(dots),
    )


Errors = Mapping[str, Sequence[tuple[int, float]]]


def smallest_errors(
    record: AuditRecord, place: Callable[[FederationSummary, int], int | None]
) -> dict[str, list[tuple[int, float]]]:
    """Federation to (place on the axis, RMSE of the attack with the smallest error) of every image with a truth.

    Args:
        record: The audit.
        place: From a federation and a round; None leaves the image out.
    """
    federations = {summary.id: summary for summary in record.federations}
    best: dict[str, tuple[str, int, float]] = {}
    for row in record.results:
        where = place(federations[row.federation], row.round)
        if row.mse is None or where is None:
            continue
        error = math.sqrt(row.mse)
        if row.victim_id not in best or error < best[row.victim_id][2]:
            best[row.victim_id] = (row.federation, where, error)
    errors: dict[str, list[tuple[int, float]]] = {}
    for federation, where, error in best.values():
        errors.setdefault(federation, []).append((where, error))
    return errors


def error_chart(errors: Errors, styles: Mapping[str, int], x_name: str) -> Chart | None:
    """Reconstruction error over rounds or local steps: a dot for each image, a line through the medians.

    Args:
        errors: As `smallest_errors` gives them.
        styles: Federation to style, for those to be drawn.
        x_name: What stands on the horizontal axis.

    Returns:
        The chart, or None when there are fewer than two places on the axis.
    """
    drawn = {federation: points for federation, points in errors.items() if federation in styles}
    places = [where for points in drawn.values() for where, _ in points]
    if len(set(places)) < 2:
        return None
    most = max(error for points in drawn.values() for _, error in points)
    high = next((top for top in _TOPS if top >= most), 1.0)
    x, y = across(min(places), max(places)), up(high)
    medians = {federation: _medians(points) for federation, points in drawn.items()}
    said = [
        f"median from {wording.figure(dots[0][1])} at {dots[0][0]} to {wording.figure(dots[-1][1])} at {dots[-1][0]}"
        for dots in medians.values()
    ]
    return Chart(
        label=f"Smallest reconstruction error of each image by {x_name}: {'; '.join(said)}",
        x_name=x_name,
        y_name="RMSE",
        x_ticks=_whole(x, min(places), max(places)),
        y_ticks=tuple((y(high * part / 5), f"{high * part / 5:.2f}") for part in range(6)),
        lines=tuple(
            line(styles[federation], [(x(a), y(b)) for a, b in points]) for federation, points in medians.items()
        ),
        dots=tuple(
            Dot(styles[federation], x(a), y(b)) for federation, points in drawn.items() for a, b in sorted(set(points))
        ),
        faint=True,
    )


def _medians(errors: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
    by_place: dict[int, list[float]] = {}
    for where, error in errors:
        by_place.setdefault(where, []).append(error)
    return [(where, statistics.median(by_place[where])) for where in sorted(by_place)]


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """SSIM of the images of one attack, on [0, 1]; negative ones count as 0.

    Attributes:
        label: For those who do not see it.
        bars: Left edge and height of each bar that is not empty, as shares.
        median: Median of the images.
        step: Width of a bar, as a share.
    """

    label: str
    bars: tuple[tuple[float, float], ...]
    median: float
    step: float = 1 / _BINS


def histogram(values: Sequence[float]) -> Histogram | None:
    """How similar the reconstructions of one attack are to the truth; None without a value."""
    if not values:
        return None
    bins = [0] * _BINS
    for value in values:
        bins[min(max(int(value * _BINS), 0), _BINS - 1)] += 1
    first, median, last = _quartiles(values)
    label = (
        f"SSIM of {len(values)} images: median {wording.figure(median)}, half of them between "
        f"{wording.figure(first)} and {wording.figure(last)}, the highest {wording.figure(max(values))}"
    )
    bars = tuple((place / _BINS, number / max(bins)) for place, number in enumerate(bins) if number)
    return Histogram(label=label, bars=bars, median=min(max(median, 0.0), 1.0))


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    first, median, last = statistics.quantiles(values, n=4, method="inclusive")
    return first, median, last
