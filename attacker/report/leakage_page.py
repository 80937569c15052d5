"""The page of a leakage analysis: one self-contained HTML file."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from attacker.leakage.record import Leakage, outliers
from attacker.report.html import data_uri, environment, write_html
from attacker.report.leakage_words import advice, headline, warning

WIDTH, HEIGHT = 440, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 40
_FLOOR = -16
"""Decades below the largest eigenvalue at which the plot ends: rounding in float64."""


@dataclass(frozen=True, kw_only=True)
class SpectrumChart:
    """Eigenvalues by their place, on a logarithmic axis.

    Attributes:
        path: Points as SVG writes them.
        x_ticks: Place on the page and number of the eigenvalue.
        y_ticks: Place on the page and power of ten.
        rank: Where the rank lies on the page, or None when it is full.
    """

    path: str
    x_ticks: tuple[tuple[float, int], ...]
    y_ticks: tuple[tuple[float, int], ...]
    rank: float | None
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    bottom: int = HEIGHT - _BOTTOM
    top: int = _TOP


def spectrum_chart(eigenvalues: Sequence[float], *, unknowns: int, rank: int) -> SpectrumChart | None:
    """The chart of an exact spectrum; None without one.

    Args:
        eigenvalues: Shares of the largest, thinned out evenly, the largest first.
        unknowns: How many there are in truth.
        rank: How many count.
    """
    if len(eigenvalues) < 2:
        return None
    decades = [max(math.log10(value), _FLOOR) if value > 0 else float(_FLOOR) for value in eigenvalues]
    low = min(-1, math.floor(min(decades)))

    def x(place: float) -> float:
        return round(_LEFT + (WIDTH - _LEFT - _RIGHT) * place / unknowns, 1)

    def y(decade: float) -> float:
        return round(_TOP + (HEIGHT - _TOP - _BOTTOM) * decade / low, 1)

    last = len(decades) - 1
    step = math.ceil(-low / 8)
    return SpectrumChart(
        path=" ".join(f"{x(unknowns * i / last)},{y(value)}" for i, value in enumerate(decades)),
        x_ticks=tuple((x(unknowns * part / 4), round(unknowns * part / 4)) for part in range(5)),
        y_ticks=tuple((y(decade), decade) for decade in range(0, low - 1, -step)),
        rank=x(rank) if rank < unknowns else None,
    )


def lost_picture(lost: Sequence[Sequence[float]]) -> str | None:
    """The map as a PNG data URI, from white (determined) to red (lost); None without a map."""
    if not lost:
        return None
    pixels = [(round(255 - 76 * v), round(255 - 217 * v), round(255 - 225 * v)) for row in lost for v in row]
    image = Image.new("RGB", (len(lost[0]), len(lost)))
    image.putdata(pixels)
    content = io.BytesIO()
    image.save(content, format="PNG")
    return data_uri(content.getvalue())


def render_leakage(found: Leakage) -> str:
    """The page as HTML text."""
    first = next((one for one in found.images if one.reason is None), None)
    chart = None
    if first is not None and first.rank is not None:
        chart = spectrum_chart(found.eigenvalues, unknowns=first.unknowns, rank=first.rank)
    most, least = outliers(found.images)
    template = environment().get_template("leakage.html.j2")
    return template.render(
        found=found,
        first=first,
        headline=headline(found),
        advice=advice(found),
        warning=warning(found),
        chart=chart,
        lost=lost_picture(found.lost),
        lost_share=sum(map(sum, found.lost)) / max(1, sum(map(len, found.lost))),
        marks={**dict.fromkeys(most, "most at risk"), **dict.fromkeys(least, "least at risk")},
    )


def write_leakage(found: Leakage, path: Path) -> Path:
    """Write the page, readable by its owner only; its absolute path.

    Raises:
        OSError: If it cannot be written.
    """
    return write_html(render_leakage(found), path)
