"""Figures of the comparisons of analytic inversion and of influence, as SVG text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from attacker.attacks.registry import entry_of
from attacker.experiments.hybrid.summary import AttackFigures, NetFigures
from attacker.experiments.precode.figures import canvas, svg_text

_STEPS = ("#1d63b8", "#0f766e", "#c2410c", "#7c3aed", "#be123c", "#a16207")


def _colour(attack: str) -> str:
    return entry_of(attack).colour


def by_net(nets: Sequence[NetFigures], name: Callable[[str], str]) -> str:
    """PSNR of every image, and a bar to the mean: a group for each net."""
    attacks = list(dict.fromkeys(entry.attack for net in nets for entry in net.attacks))
    figure, axes = canvas(7.2, 0.9 + len(nets) * (0.15 * len(attacks) + 0.16))
    thickness = 0.8 / len(attacks)
    for row, net in enumerate(nets):
        for result in net.attacks:
            if result.psnr is None:
                continue
            y = row + (attacks.index(result.attack) - (len(attacks) - 1) / 2) * thickness
            axes.barh(y, result.psnr, thickness * 0.85, color=_colour(result.attack), alpha=0.55)
            axes.plot(result.each, [y] * len(result.each), ".", color=_colour(result.attack), markersize=3.5)
    axes.set_yticks(range(len(nets)), [net.name for net in nets])
    axes.tick_params(axis="y", colors="#16202c", length=0)
    axes.invert_yaxis()
    axes.set(xlim=(0, None), xlabel="PSNR, dB")
    for attack in attacks:
        axes.plot([], [], "s", color=_colour(attack), label=name(attack))
    figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=9)
    return svg_text(figure)


def by_noise(rows: Sequence[AttackFigures], name: Callable[[str], str]) -> str:
    """Mean PSNR against the noise's standard deviation, a line for each attack; no noise stands at the left end."""
    figure, axes = canvas(6.4, 3.8)
    stds = sorted({row.std for row in rows})
    for attack in dict.fromkeys(row.attack for row in rows):
        points = sorted((row.std, row.psnr, row.each) for row in rows if row.attack == attack and row.psnr is not None)
        places = [stds.index(std) for std, _, _ in points]
        axes.plot(
            places, [psnr for _, psnr, _ in points], "o-", color=_colour(attack), markersize=4, label=name(attack)
        )
        for place, (_, _, each) in zip(places, points, strict=True):
            axes.plot([place] * len(each), each, ".", color=_colour(attack), markersize=3, alpha=0.5)
    axes.set_xticks(range(len(stds)), [f"{std:g}" for std in stds])
    axes.set(xlabel="standard deviation of the noise", ylabel="PSNR, dB")
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=9)
    return svg_text(figure)


def predicted(points: Mapping[str, Sequence[tuple[float, float]]], title: str) -> str:
    """Measured against predicted error on logarithmic axes, with the line on which both agree.

    Args:
        points: (predicted, measured) of each image, by what was done to the gradient.
        title: Title of the predicted quantity.
    """
    figure, axes = canvas(5.0, 4.6)
    shown = [pair for pairs in points.values() for pair in pairs if min(pair) > 0]
    for number, (name, pairs) in enumerate(points.items()):
        known = [pair for pair in pairs if min(pair) > 0]
        shade = _STEPS[number % len(_STEPS)]
        x, y = [pair[0] for pair in known], [pair[1] for pair in known]
        axes.plot(x, y, "o", color=shade, markersize=4.5, alpha=0.75, label=name)
    axes.set(xscale="log", yscale="log", xlabel=f"{title}, RMSE", ylabel="measured RMSE")
    ends = [min(y for _, y in shown) * 0.7, max(y for _, y in shown) * 1.4] if shown else [0.1, 1.0]
    axes.plot(ends, ends, "-", color="#556171", linewidth=0.8, zorder=1)
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=9)
    return svg_text(figure)


def pruned(rows: Mapping[float, tuple[float, float]]) -> str:
    """Predicted and measured error (medians) by share of the gradient that is set to zero."""
    figure, axes = canvas(5.0, 3.2)
    shares = sorted(rows)
    for place, name, shade, style in ((0, "I2F", "#1d63b8", "o-"), (1, "measured", "#b3261e", "s--")):
        axes.plot(shares, [rows[share][place] for share in shares], style, color=shade, markersize=4.5, label=name)
    axes.set(xlabel="share of the gradient that is pruned", ylabel="RMSE, median", yscale="log")
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=9)
    return svg_text(figure)


def risks(rows: Mapping[str, Sequence[float]]) -> str:
    """E-I2F of every image by model and initialisation: to the left leaks most."""
    figure, axes = canvas(5.4, 0.9 + 0.32 * len(rows))
    for row, values in enumerate(rows.values()):
        axes.plot(values, [row] * len(values), "o", color=_STEPS[0], markersize=5, alpha=0.75)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.tick_params(axis="y", colors="#16202c", length=0)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="E-I2F: RMSE for noise of standard deviation 1")
    return svg_text(figure)
