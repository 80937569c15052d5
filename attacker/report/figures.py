"""Coordinates of the page's charts; the template draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attacker.audit.record import FederationSummary

WIDTH, HEIGHT = 440, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 12, 36
_MOST_TICKS = 8


@dataclass(frozen=True)
class Line:
    """One curve: style number, points as SVG writes them, and the points apart."""

    style: int
    path: str
    dots: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Chart:
    """Accuracy over rounds.

    Attributes:
        lines: Curves, undefended first.
        x_ticks: Place and round.
        y_ticks: Place and per cent.
    """

    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, int], ...]
    y_ticks: tuple[tuple[float, int], ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    bottom: int = HEIGHT - _BOTTOM


def accuracy_chart(federations: Sequence[FederationSummary]) -> Chart | None:
    """Accuracy of each federation by round, 0 to 100 %; None when no accuracy is known."""
    rounds = [one.round for f in federations for one in f.accuracy if one.accuracy is not None]
    if not rounds:
        return None
    first, last = min(rounds), max(rounds)
    span = max(last - first, 1)

    def x(number: int) -> float:
        return round(_LEFT + (WIDTH - _LEFT - _RIGHT) * (number - first) / span, 1)

    def y(accuracy: float) -> float:
        return round(_TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - accuracy), 1)

    lines = []
    for style, federation in enumerate(federations):
        dots = tuple((x(one.round), y(one.accuracy)) for one in federation.accuracy if one.accuracy is not None)
        lines.append(Line(style=style, path=" ".join(f"{a},{b}" for a, b in dots), dots=dots))
    step = -(-span // _MOST_TICKS)
    ticks = range(first, last + 1, step)
    return Chart(
        lines=tuple(lines),
        x_ticks=tuple((x(number), number) for number in ticks),
        y_ticks=tuple((y(share / 100), share) for share in (0, 25, 50, 75, 100)),
    )
