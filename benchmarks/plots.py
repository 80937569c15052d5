"""Pictures of measurements; matplotlib is a development dependency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
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
