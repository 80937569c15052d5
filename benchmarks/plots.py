"""Pictures of measurements; matplotlib is a development dependency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FormatStrFormatter, LogLocator

PEERS = {"plain loop": ("0.45", ":"), "invertinggradients": ("C3", "--"), "breaching": ("C4", "-.")}
OURS = {"restarts": ("C0", "o", "ours, restarts of one victim"), "victims": ("C1", "s", "ours, different victims")}


def _whole_decade(panel: Axes) -> None:
    """At least a factor of ten from bottom to top, so that small differences look small; ticks as plain numbers."""
    low, high = panel.get_ylim()
    widen = max(1.0, (10 * low / high) ** 0.5)
    panel.set_ylim(low / widen, high * widen)
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(FormatStrFormatter("%g"))


def plot_speed(content: dict[str, Any], path: Path) -> None:
    """Milliseconds of CPU for one iteration of one candidate against candidates, one panel a model."""
    models = content["models"]
    figure, panels = plt.subplots(
        1, len(models), figsize=(1 + 3.4 * len(models), 3.8), squeeze=False, layout="constrained"
    )
    for panel, (model, rows) in zip(panels[0], models.items(), strict=True):
        measured = [row for row in rows if row["cpu"] is not None]
        for row in measured:
            if row["kind"] in PEERS:
                colour, style = PEERS[row["kind"]]
                panel.axhline(row["cpu"]["median"], color=colour, linestyle=style, label=row["kind"])
        for kind, (colour, marker, label) in OURS.items():
            # One candidate is both.
            own = [row for row in measured if row["kind"] == kind or row["name"] == "1 candidate"]
            own.sort(key=lambda row: row["candidates"])
            middle = [row["cpu"]["median"] for row in own]
            spread = [
                [max(0.0, row["cpu"]["median"] - row["cpu"]["least"]) for row in own],
                [max(0.0, row["cpu"]["most"] - row["cpu"]["median"]) for row in own],
            ]
            counts = [row["candidates"] for row in own]
            panel.errorbar(counts, middle, spread, color=colour, marker=marker, capsize=3, label=label)
        panel.set(title=model, xscale="log", yscale="log", xlabel="candidates attacked together")
        counts = sorted({row["candidates"] for row in rows})
        panel.set_xticks(counts, [str(count) for count in counts])
        panel.minorticks_off()
        _whole_decade(panel)
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("CPU ms for one iteration\nof one candidate")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


COLOURS = {
    "reconstructed": "#b2182b",
    "some images": "#ef8a62",
    "labels only": "#fddbc7",
    "dark": "#4d4d4d",
    "formulas get nothing": "#d9d9d9",
    "not run here": "#ffffff",
}


def plot_map(content: dict[str, Any], path: Path) -> None:
    """A square for each architecture, batch, number of steps and size, in the colour of what an update gave away."""
    from benchmarks.architecture_map import STATES, entry_of, square, state
    from benchmarks.architectures import COLUMNS, ROWS

    figure, axes = plt.subplots(figsize=(14.5, 0.62 * len(ROWS) + 2.2), layout="constrained")
    for down, row in enumerate(ROWS):
        for across, (size, batch, steps) in enumerate(COLUMNS):
            entry = entry_of(content, row, size, batch, steps)
            seen = state(entry)
            unsearched = entry is not None and not entry["searched"] and not entry["came_back"]
            axes.add_patch(
                Rectangle(
                    (across, down), 1, 1, facecolor=COLOURS[seen], edgecolor="0.75", hatch="///" if unsearched else None
                )
            )
            colour = "white" if seen in ("reconstructed", "dark") else "black"
            axes.text(across + 0.5, down + 0.5, square(entry), color=colour, ha="center", va="center", fontsize=7)
    steps_of = {1: "1 step", 4: "4 steps"}
    axes.set_xticks(
        [across + 0.5 for across in range(len(COLUMNS))],
        [f"{size} px\nbatch {batch}\n{steps_of[steps]}" for size, batch, steps in COLUMNS],
    )
    axes.set_yticks(
        [down + 0.5 for down in range(len(ROWS))], [f"{row.network}\n{row.norm}" for row in ROWS.values()], fontsize=8
    )
    axes.set(xlim=(0, len(COLUMNS)), ylim=(len(ROWS), 0))
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.axvline(len(COLUMNS) / 2, color="black", linewidth=1.5)
    keys = [Patch(facecolor=COLOURS[one], edgecolor="0.5", label=one) for one in STATES]
    keys.append(Patch(facecolor="white", edgecolor="0.5", hatch="///", label="formulas and labels tried, no search"))
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_identification(content: dict[str, Any], path: Path) -> None:
    """Place of the true image among its candidates against SSIM, an image each; and shares of both by defence."""
    rows = content["defences"]
    kinds = {"none": ("C2", "o"), "noise": ("C0", "s"), "prune": ("C1", "^"), "dp": ("C3", "D")}
    figure, (places, shares) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained", width_ratios=(1, 1.25))
    for kind, (colour, marker) in kinds.items():
        own = [one for row in rows.values() if row["defence"].partition(":")[0] == kind for one in row["results"]]
        pairs = [(one["ssim"], one["rank"]) for one in own if one["rank"] is not None]
        if pairs:
            places.scatter(*zip(*pairs, strict=True), s=16, alpha=0.6, color=colour, marker=marker, label=kind)
    places.axvline(0.6, color="0.5", linestyle=":")
    places.axhline(501, color="0.5", linestyle="--", linewidth=0.8)
    places.set(xlabel="SSIM with the true image (dotted: .6)", yscale="log", ylim=(1100, 0.8))
    places.set_ylabel("place of the true image among 1,001 (dashed: by chance)")
    places.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    places.legend(loc="lower right")
    names = [row["defence"].replace(",", ",\n") for row in rows.values()]
    bars = {
        "reconstructed (SSIM)": [row["came_back"] / row["images"] for row in rows.values()],
        "first by pixels": [_first(row, "pixels") for row in rows.values()],
        "first by features": [_first(row, "features") for row in rows.values()],
    }
    height = 0.27
    for number, (label, values) in enumerate(bars.items()):
        where = [place + (number - 1) * height for place in range(len(names))]
        shares.barh(where, values, height, label=label, color=("0.6", "C0", "C4")[number])
    shares.set_yticks(range(len(names)), names)
    shares.invert_yaxis()
    shares.set(xlabel="share of the images", xlim=(0, 1))
    shares.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _first(row: dict[str, Any], measure: str) -> float:
    found = [ranks for ranks in row["identification"] if ranks["measure"] == measure]
    return float(found[0]["first"]) / float(row["images"]) if found else 0.0
