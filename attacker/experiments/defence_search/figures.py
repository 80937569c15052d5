"""The privacy-utility plot of recommendations, as SVG and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from attacker import wording
from attacker.experiments.defence_search.result import PrivacyOfRung, Recommendation, Rung, Trial
from fl_precode.private_file import write_private

PLOT_NAME = "privacy-utility.svg"
TABLE_NAME = "privacy-utility.csv"

_SHADES = ("#1d63b8", "#c2410c", "#0f766e", "#7c3aed", "#be123c", "#a16207")
_TICKS = (-1, 0, 1, 2, 5, 10, 20, 40)
_HEADINGS = (
    "model", "data", "family", "batch", "local_steps", "noise", "defence_fedsgd", "defence_fedavg", "disclosed",
    "victims", "share", "share_low", "share_high", "only_formulas", "best_attack", "lost_points", "lost_points_fedsgd",
    "lost_points_fedavg", "spread_fedsgd", "spread_fedavg", "seeds", "epsilon_image", "epsilon_client",
    "upper_bound", "recommended",
)  # fmt: skip


def read_recommendation(path: Path) -> Recommendation:
    """A search's result from its file.

    Raises:
        ValueError: If there is none, or it is no such record.
    """
    try:
        return Recommendation.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path} is no recommendation.json of fl-precode: {place}: {first['msg']}") from None


def keep_figures(recommendations: Sequence[Recommendation], folder: Path) -> list[Path]:
    """Write plot and table; nothing where no family was measured so far.

    Returns:
        The paths that were written.

    Raises:
        OSError: If they cannot be written.
    """
    shown = [one for one in recommendations if closest_trial(one) is not None]
    if not shown:
        return []
    content = {PLOT_NAME: privacy_utility(shown), TABLE_NAME: table(shown)}
    for name, text in content.items():
        write_private(folder / name, text.encode())
    return [folder / name for name in content]


def closest_trial(recommendation: Recommendation) -> Trial | None:
    """The family that is shown: recommended, or nearest to it."""
    return None if recommendation.closest is None else recommendation.trials[recommendation.closest]


def table(recommendations: Sequence[Recommendation]) -> str:
    """All rungs that were measured of the shown families, as CSV."""
    target = io.StringIO()
    writer = csv.DictWriter(target, _HEADINGS, lineterminator="\n")
    writer.writeheader()
    for one in recommendations:
        trial = closest_trial(one)
        if trial is not None:
            writer.writerows(_row(one, trial, rung) for rung in trial.rungs)
    return target.getvalue()


def _row(recommendation: Recommendation, trial: Trial, rung: Rung) -> dict[str, object]:
    low, high = rung.interval or (None, None)
    private = {level: _weakest(rung, level) for level in ("image", "client")}
    image, client = private["image"], private["client"]
    return {
        "model": trial.model, "data": recommendation.data, "family": family_name(trial), "batch": trial.batch_size,
        "local_steps": trial.local_steps, "noise": rung.noise, "defence_fedsgd": rung.defences.get("fedsgd", ""),
        "defence_fedavg": rung.defences.get("fedavg", ""), "disclosed": rung.disclosed, "victims": rung.victims,
        "share": share(rung), "share_low": low, "share_high": high, "only_formulas": rung.only_formulas,
        "best_attack": rung.attack, "lost_points": lost_points(rung),
        **{f"lost_points_{name}": _points(rung.lost.get(name)) for name in ("fedsgd", "fedavg")},
        **{f"spread_{name}": _points(rung.spread.get(name)) for name in ("fedsgd", "fedavg")},
        "seeds": min((len(one) for one in rung.accuracy.values()), default=0),
        "epsilon_image": image.composed if image else None, "epsilon_client": client.composed if client else None,
        "upper_bound": bound(rung),
        "recommended": trial.verdict == "recommended" and rung.noise == trial.noise,
    }  # fmt: skip


def family_name(trial: Trial) -> str:
    """A family for people, short."""
    clip = {"client": "client-level", "example": "DP-SGD", "noise": "noise alone"}.get(trial.mechanism, trial.mechanism)
    at = f", clip at {trial.quantile:g}" if trial.mechanism != "noise" else ""
    return f"{clip}{at}{f', {trial.beside}' if trial.beside else ''}"


def share(rung: Rung) -> float | None:
    """Share of the victims that were reconstructed; None if that is not known."""
    return None if rung.disclosed is None or not rung.victims else rung.disclosed / rung.victims


def lost_points(rung: Rung) -> float | None:
    """Points of accuracy that are lost, under the protocol that loses more; None if that was not measured."""
    if rung.noise == 0:
        return 0.0
    return 100 * max(rung.lost.values()) if len(rung.lost) == 2 else None


def _points(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _weakest(rung: Rung, level: str) -> PrivacyOfRung | None:
    """The guarantee of the protocol that spends more."""
    known = [one for one in rung.privacy if one.level == level and one.composed is not None]
    return max(known, key=lambda one: one.composed or 0.0, default=None)


def bound(rung: Rung) -> float | None:
    """Share of images that no attack on one round exceeds; None where nothing is guaranteed."""
    return max((one.upper_bound for one in rung.privacy if one.upper_bound is not None), default=None)


def privacy_utility(recommendations: Sequence[Recommendation]) -> str:
    """Accuracy lost against the share that is reconstructed, and against epsilon: a line for each model.

    Both panels have the same height. On the left the best attack with its interval, and the bound; on the right the
    same points by the epsilon that is spent in all rounds.
    """
    from attacker.experiments.precode.figures import panels, svg_text

    figure, (left, right) = panels(9.2, 4.6, 2)
    spent = False
    for number, one in enumerate(recommendations):
        trial = closest_trial(one)
        if trial is not None:
            spent |= _line(left, right, trial, _label(trial), _SHADES[number % len(_SHADES)])
    # Above a few points the scale is logarithmic, so that the one point that may be lost stays visible.
    right.set_yscale("symlog", linthresh=2.0)
    right.set_yticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
    for axis in (left, right):
        axis.axhline(1.0, color="#556171", linewidth=0.8, linestyle="--")
    left.set(xlim=(-0.04, 1.04), xlabel="images reconstructed by the best attack (x: the bound)")
    left.set_ylabel("points of accuracy lost, worse protocol")
    left.xaxis.set_major_formatter(lambda value, _: f"{value * 100:.3g} %")
    right.set(xlabel="epsilon of all rounds, one client")
    if spent:
        right.set_xscale("log")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False, fontsize=9)
    return svg_text(figure)


def _label(trial: Trial) -> str:
    verdict = "recommended (star)" if trial.verdict == "recommended" else f"{trial.gap_rungs} rung(s) apart"
    return (
        f"{wording.model_name(trial.model)}, {family_name(trial)}, {trial.batch_size} x {trial.local_steps}: {verdict}"
    )


def _line(left: Any, right: Any, trial: Trial, label: str, shade: str) -> bool:
    """Draw one family; whether any of its points has an epsilon."""
    points = list(_points_of(trial))
    left.plot([x for x, _, _ in points], [y for _, y, _ in points], "o-", color=shade, markersize=4, label=label)
    spent = []
    for x, y, rung in points:
        low, high = rung.interval or (x, x)
        left.errorbar(
            x, y, xerr=[[max(0.0, x - low)], [max(0.0, high - x)]], fmt="none", ecolor=shade, elinewidth=0.8,
            capsize=1.5, alpha=0.6,
        )  # fmt: skip
        most, private = bound(rung), _weakest(rung, "client")
        if most is not None:
            left.plot([most], [y], "x", color=shade, markersize=5, alpha=0.7)
        if private is not None:
            spent.append((private.composed, y))
        if trial.verdict == "recommended" and rung.noise == trial.noise:
            left.plot([x], [y], "*", color=shade, markersize=14, markeredgecolor="#16202c")
            if private is not None:
                right.plot([private.composed], [y], "*", color=shade, markersize=14, markeredgecolor="#16202c")
    right.plot([x for x, _ in spent], [y for _, y in spent], "o-", color=shade, markersize=4)
    return bool(spent)


def _points_of(trial: Trial) -> Iterator[tuple[float, float, Rung]]:
    """Rungs of which both figures are known, by rising noise."""
    for rung in trial.rungs:
        x, y = share(rung), lost_points(rung)
        if x is not None and y is not None:
            yield x, y, rung
