"""The page of a leakage analysis: one self-contained HTML file."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from attacker import wording
from attacker.leakage.record import Leakage, outliers
from attacker.report.figures import Chart, across, line, up
from attacker.report.html import data_uri, environment, write_html
from attacker.report.leakage_words import advice, headline, warning

_FLOOR = -16
"""Decades below the largest eigenvalue at which the plot ends: rounding in float64."""
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def spectrum_chart(eigenvalues: Sequence[float], *, unknowns: int, rank: int) -> Chart | None:
    """An exact spectrum by place on a logarithmic axis, and a line at the rank where it is not full; None without one.

    Args:
        eigenvalues: Shares of the largest, thinned out evenly, the largest first.
        unknowns: How many there are in truth.
        rank: How many count.
    """
    if len(eigenvalues) < 2:
        return None
    decades = [max(math.log10(value), _FLOOR) if value > 0 else float(_FLOOR) for value in eigenvalues]
    low = min(-1, math.floor(min(decades)))
    x, height = across(0, unknowns), up(1)
    last = len(decades) - 1
    spectrum = [(x(unknowns * i / last), height(1 - value / low)) for i, value in enumerate(decades)]
    limit = [(x(rank), height(1)), (x(rank), height(0))]
    return Chart(
        label=f"Eigenvalues of JJ^T, the largest first: {rank} of {unknowns} count",
        x_name="directions in the image",
        y_name="eigenvalue",
        x_ticks=tuple((x(unknowns * part / 4), wording.count(round(unknowns * part / 4))) for part in range(5)),
        y_ticks=tuple((height(1 - decade / low), _power(decade)) for decade in range(0, low - 1, -math.ceil(-low / 8))),
        lines=(line(0, spectrum, marked=False), *([line(1, limit, marked=False)] if rank < unknowns else [])),
    )


def _power(decade: int) -> str:
    """A power of ten in the least space."""
    return f"10{str(decade).translate(_RAISED)}" if decade else "1"


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


def render_leakage(leakage: Leakage) -> str:
    """The page as HTML text."""
    first = next((image for image in leakage.images if image.reason is None), None)
    chart = None
    if first is not None and first.rank is not None:
        chart = spectrum_chart(leakage.eigenvalues, unknowns=first.unknowns, rank=first.rank)
    most, least = outliers(leakage.images)
    template = environment().get_template("leakage.html.j2")
    return template.render(
        found=leakage,
        first=first,
        headline=headline(leakage),
        advice=advice(leakage),
        warning=warning(leakage),
        chart=chart,
        lost=lost_picture(leakage.lost),
        lost_share=sum(map(sum, leakage.lost)) / max(1, sum(map(len, leakage.lost))),
        marks={**dict.fromkeys(most, "most at risk"), **dict.fromkeys(least, "least at risk")},
    )


def write_leakage(leakage: Leakage, path: Path) -> Path:
    """Write the page, readable by its owner only; its absolute path.

    Raises:
        OSError: If it cannot be written.
    """
    return write_html(render_leakage(leakage), path)
