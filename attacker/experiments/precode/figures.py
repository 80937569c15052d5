"""The page's figures, drawn by matplotlib as SVG text."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from textwrap import fill
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from attacker import wording
from attacker.experiments.precode.summary import Curve, Score, SetupSummary
from attacker.experiments.precode.summary_lookup import best_adaptive, plain_matching, worst

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "path",  # a page must look alike on machines with other fonts
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "axes.edgecolor": "#556171",
    "axes.labelcolor": "#16202c",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": "#556171",
    "ytick.color": "#556171",
    "text.color": "#16202c",
    "grid.color": "#d9dee5",
}
_LEGEND = 30
"""Characters of a name that fit into half of a figure's width."""

_FAMILIES = (
    ("precode+ppp", "#0f766e"),
    ("precode", "#1d63b8"),
    ("cvb", "#7c3aed"),
    ("noise", "#c2410c"),
    ("laplace", "#a16207"),
    ("prune", "#4d7c0f"),
    ("dp", "#be123c"),
    ("none", "#16202c"),
)
_OTHER = "#64748b"
_DASHES = ("-", "--", ":", "-.")


def colour(defence: str) -> str:
    """Colour of a defence and its kin, the same in all figures."""
    return next((value for name, value in _FAMILIES if defence.startswith(name)), _OTHER)


def trade_off(setups: Sequence[SetupSummary]) -> str:
    """Accuracy against the success of the best attack: one point for each defence, with its 95 % intervals.

    A ring stands where the plain attack alone would have put the defence; a line leads from it to the point.
    """
    figure, axes = canvas(6.4, max(3.4, 0.3 * len(setups) + 1.2))
    points = []
    for setup in setups:
        best = worst(setup, lambda state: state.best_by_ssim)
        x, y = best.rate or 0.0, setup.central.final or 0.0
        shade = colour(setup.defence)
        plain = worst(setup, plain_matching)
        if plain.rate is not None and plain.rate != best.rate:
            axes.plot([plain.rate, x], [y, y], color=shade, linewidth=1, linestyle=":", zorder=1)
            axes.plot(plain.rate, y, "o", markerfacecolor="white", markeredgecolor=shade, markersize=7, zorder=2)
        axes.errorbar(
            x, y, xerr=_whiskers(x, best.interval), yerr=_whiskers(y, setup.central.interval), fmt="o", color=shade,
            markersize=7, elinewidth=1, capsize=2, alpha=0.9, zorder=3,
        )  # fmt: skip
        points.append((y, x, wording.capitalised(wording.defence_name(setup.defence)), shade))
    axes.set(xlim=(-0.04, 1.04), xlabel="attack success rate (SSIM ≥ 0.6), best attack", ylabel="accuracy")
    _percent(axes, "x")
    _percent(axes, "y")
    _labels_at_the_side(axes, points)
    return svg_text(figure)


def _labels_at_the_side(axes: Axes, points: Sequence[tuple[float, float, str, str]]) -> None:
    """Names in a column on the right, each with a line to its point: points may lie on one another, names must not."""
    low, high = axes.get_ylim()
    count = len(points)
    for place, (y, x, name, shade) in enumerate(sorted(points)):
        level = low + (high - low) * (place + 0.5) / count
        axes.annotate(
            name, xy=(x, y), xytext=(1.10, level), textcoords="data", va="center", color=shade, fontsize=9.5,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": shade, "linewidth": 0.6, "alpha": 0.5, "shrinkA": 2, "shrinkB": 4,
                        "relpos": (0, 0.5)},
        )  # fmt: skip
    axes.set_ylim(low, high)


def success(setups: Sequence[SetupSummary], place: int) -> str:
    """Success of the plain attack, the best adaptive one and the best of all, by defence, in one state."""
    rows: list[tuple[str, str, Callable[[SetupSummary], Score | None]]] = [
        ("Inverting Gradients", "#94a3b8", lambda summary: plain_matching(summary.states[place])),
        ("best adaptive attack", "#f59e0b", lambda summary: best_adaptive(summary.states[place])),
        ("best of all, attacker's choice", "#ef8a80", lambda summary: summary.states[place].best_by_own_measure),
        ("best of all, by SSIM", "#b3261e", lambda summary: summary.states[place].best_by_ssim),
    ]
    shown = [
        row for row in rows if any((picked := row[2](summary)) is not None and picked.victims for summary in setups)
    ]
    figure, axes = canvas(5.4, 0.75 + len(setups) * (0.16 * len(shown) + 0.14))
    for place_in_group, (name, shade, pick) in enumerate(shown):
        for number, setup in enumerate(setups):
            score = pick(setup)
            if score is None or score.rate is None:
                continue
            y = number + (place_in_group - (len(shown) - 1) / 2) * 0.8 / len(shown)
            axes.barh(y, score.rate, 0.8 / len(shown) * 0.9, color=shade, label=name if number == 0 else None)
            axes.errorbar(
                score.rate, y, xerr=_whiskers(score.rate, score.interval), fmt="none", ecolor="#16202c",
                elinewidth=0.9, capsize=1.5,
            )  # fmt: skip
    axes.set_yticks(
        range(len(setups)), [wording.capitalised(wording.defence_name(summary.defence)) for summary in setups]
    )
    axes.tick_params(axis="y", colors="#16202c", length=0)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.02))
    _percent(axes, "x")
    handles = [Patch(color=shade, label=name) for name, shade, _ in shown]
    figure.legend(handles=handles, loc="outside upper left", ncols=2, frameon=False, fontsize=9)
    return svg_text(figure)


def accuracy(setups: Sequence[SetupSummary], *, federated: bool) -> str | None:
    """Accuracy by epoch, or by round of the federations; None where there is none."""
    curves = [
        (summary, curve) for summary in setups if (curve := _curve(summary, federated)) is not None and curve.points
    ]
    if not curves:
        return None
    figure, axes = canvas(5.4, 3.0 + 0.19 * len(curves))
    shade_counts: dict[str, int] = {}
    for setup, curve in curves:
        shade = colour(setup.defence)
        dash = shade_counts.get(shade, 0)
        shade_counts[shade] = dash + 1
        axes.plot(
            [point.number for point in curve.points], [point.accuracy for point in curve.points], color=shade,
            linestyle=_DASHES[dash % len(_DASHES)], marker="o" if len(curve.points) < 20 else "", markersize=3.5,
            label=fill(wording.capitalised(wording.defence_name(setup.defence)), _LEGEND),
        )  # fmt: skip
    axes.set(xlabel="round" if federated else "epoch", ylabel="accuracy on test images")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _percent(axes, "y")
    figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=9)
    return svg_text(figure)


def _curve(setup: SetupSummary, federated: bool) -> Curve | None:
    return setup.federated if federated else setup.central


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure of this size in inches, in the style of the pages."""
    figure, (axes,) = panels(width, height, 1)
    return figure, axes


def panels(width: float, height: float, count: int) -> tuple[Figure, list[Axes]]:
    """The same with several panels beside one another, of one height and one vertical axis."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        rows = figure.subplots(1, count, sharey=True, squeeze=False)
    axes = list(rows[0])
    for one in axes:
        one.grid(alpha=0.7, linewidth=0.7)
        one.set_axisbelow(True)
    return figure, axes


def _whiskers(value: float, interval: tuple[float, float] | None) -> list[list[float]] | None:
    if interval is None:
        return None
    return [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]]


def _percent(axes: Axes, which: str) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(lambda value, _: f"{value * 100:.3g} %")


def svg_text(figure: Figure) -> str:
    """The picture without what changes from one drawing to the next."""
    target = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": "fl-precode"}):
        figure.savefig(target, format="svg", metadata={"Date": None}, transparent=False, facecolor="white")
    return target.getvalue()
