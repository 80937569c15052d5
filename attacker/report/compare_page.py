"""The page of a comparison of two audits: one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attacker.audit.verdict.compare import IDENTIFIED, Change, Comparison
from attacker.report.html import environment, write_html


def headline(comparisons: Sequence[Comparison]) -> str:
    """The page's first sentence."""
    every = [change for comparison in comparisons for change in comparison.changes]
    if not every:
        return "The audits cannot be compared."
    for judgement, word in (("worse", "More"), ("better", "Fewer")):
        if found := [change for change in every if change.judgement == judgement]:
            only_named = all(change.attack == IDENTIFIED for change in found)
            return f"{word} images are {'identified' if only_named else 'reconstructed'} than before."
    return "No difference is shown."


def place(change: Change) -> tuple[float, float, float]:
    """Interval's ends and difference on an axis from 0 (fewer) to 100 (more), for drawing."""
    low, high = change.interval
    return 50 + 50 * low, 50 + 50 * high, 50 + 50 * change.difference


def render_comparison(comparisons: Sequence[Comparison], names: tuple[str, str]) -> str:
    """The page as HTML text.

    Args:
        comparisons: What changed.
        names: Names of the two records.
    """
    template = environment(place=place).get_template("compare.html.j2")
    return template.render(found=comparisons, names=names, headline=headline(comparisons))


def write_comparison(comparisons: Sequence[Comparison], names: tuple[str, str], path: Path) -> Path:
    """Write the page, readable by its owner only; its absolute path.

    Raises:
        OSError: If it cannot be written.
    """
    return write_html(render_comparison(comparisons, names), path)
