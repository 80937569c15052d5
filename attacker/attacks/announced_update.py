"""Effect of an announced defence on the numbers of an update, and the comparison of candidates with them.

Searches that know a defence in the model (a bottleneck's noise, dropout's masks) take this comparison, so that one
attack knows the whole of a defence such as ``dropout+prune`` or ``precode+noise``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from attacker.attacks.defence_names import SCALING
from attacker.attacks.likelihood_distance import DEFENCE_NOISE, matched_distance
from attacker.attacks.numbers_left import ADDS_NOISE, mostly_cut, numbers_left
from attacker.gradients.observed import why_scale_unknown
from attacker.gradients.trace import Trace
from attacker.reasons import Reason, because
from fl_precode.defences.flower_dp import LocalDp
from fl_precode.defences.on_gradients import Quantise
from fl_precode.defences.registry import defence_parts, gradient_defence
from fl_precode.observation import Observation
from fl_precode.spec import Spec

COMPARED = frozenset({"noise", "laplace", "ppp", "prune", "clip", "quantise", "soteria", "sign"}) | {
    "local-dp", "central-dp", "percentile", "svt",
}  # fmt: skip
"""Defences that a comparison takes into account, by name, in any combination of which `compared_parts` says so.

Not ``dp``, which clips each image's gradient before the sum: what it leaves is compared by its direction.
"""

ANNOUNCED = "announced"
"""The value of ``distance`` that takes what fits the announced defence, and the default."""

_SURELY_BELOW = 0.999
"""Share of the largest norm below which rounding cannot make a clipped update look like one that was left alone."""

_CHANCE = 6.0
"""Standard deviations of noise that are certainly not exceeded."""


@dataclass(frozen=True, kw_only=True)
class UpdateComparison:
    """How the update of one client is compared with candidates.

    Attributes:
        observation: The update; numbers that the defence changed in ways that can be seen are zero in it
            (`attacker.attacks.numbers_left`).
        distance: One of `attacker.gradients.distances.DISTANCES`.
        left_out: Parameters that do not count.
        units: As `attacker.attacks.side_information.SideInformation.units`.
        parts: The parts of the announced defence that this takes into account, by name.
    """

    observation: Observation
    distance: str
    parts: tuple[str, ...]
    left_out: frozenset[str] = frozenset()
    units: Mapping[str, float] = field(default_factory=dict)


def announced_comparison(observation: Observation, model_trace: Trace) -> UpdateComparison | Reason:
    """The comparison that fits the announced defence, or why the announcement cannot be.

    Noise and stochastic rounding set the distance (`likelihood_distance`); pruning leaves only what was sent, and where
    noise came after it the largest numbers of each tensor are taken to be those; rounding gives each tensor the unit of
    its own step, besides that of the noise; a clipped update has no scale; Soteria's layer is left out, by its weight.
    Of what a filter sent, numbers that it cut or made noisy do not count; where it cut all, signs do.

    Args:
        observation: The update, with what was announced.
        model_trace: A trace of the model.
    """
    parts = announced_parts(observation)
    names = [part.name for part in parts]
    left_out: frozenset[str] = frozenset()
    if "soteria" in names:
        layer = parts[names.index("soteria")].options.get("layer") or _last_linear(model_trace)
        if f"{layer}.weight" not in observation.parameters.keys() | observation.frozen:
            return because("defended-layer-missing", layer=layer)
        left_out = frozenset({f"{layer}.weight"})
    matched = [name for part in parts if (name := _as_compared(observation, part, names))]
    matched += ["sign"] if mostly_cut(observation, parts) else []
    distance = matched_distance("+".join(matched) or "none", scale_known=why_scale_unknown(observation) is None)
    return UpdateComparison(
        observation=numbers_left(observation, parts),
        distance=distance,
        parts=tuple(name for name in names if name in compared_parts(names)),
        left_out=left_out,
        units=_units(observation, parts),
    )


def follows_announcement(spec: Spec) -> bool:
    """Whether an adaptive attack compares updates as the announced defence asks, and not by a distance of its own."""
    return spec.options.get("distance", ANNOUNCED) == ANNOUNCED


def compared_parts(names: Collection[str]) -> frozenset[str]:
    """Parts of a defence that a comparison takes into account.

    Signs that noise was added to, or that were taken of noisy numbers, are compared as numbers: that knows the noise.

    >>> sorted(compared_parts(["precode", "prune", "sign"])), sorted(compared_parts(["noise", "sign"]))
    (['prune', 'sign'], ['noise'])
    """
    compared = COMPARED & set(names)
    return compared - {"sign"} if ADDS_NOISE & compared else compared


def announced_parts(observation: Observation) -> list[Spec]:
    """Parts of the announced defence whose meaning is known; none where it is in nobody's terms but the client's."""
    try:
        parts = defence_parts(observation.protocol.defence or "none")
    except ValueError:
        return []
    return [part for part in parts if part.name in DEFENCE_NOISE]


def _last_linear(model_trace: Trace) -> str:
    """Name of the Linear layer that Soteria defends when no layer is named: the last that is no bottleneck's own."""
    inside = tuple(f"{run.name}." for run in model_trace.bottlenecks)
    names = [
        run.name for run in model_trace.layers if isinstance(run.module, nn.Linear) and not run.name.startswith(inside)
    ]
    return names[-1] if names else ""


def _as_compared(observation: Observation, part: Spec, names: Sequence[str]) -> str | None:
    """The name by which a part sets the distance: its own, that of what it did to this update, or None for nothing."""
    if part.name in SCALING and _left_alone(observation, part, names):
        return None
    if part.name == "central-dp" and part.options.get("side") == "server":
        return None
    return "noise" if part.name == "local-dp" and _left_alone(observation, part, names) else part.name


def _left_alone(observation: Observation, clip: Spec, names: Sequence[str]) -> bool:
    """Whether the update is certainly shorter than the largest norm, and nothing changed it after clipping.

    Filters of the whole reply clip by buffers and counters as well: where there are any, nobody knows.
    """
    largest = clip.number("max_norm" if clip.name == "clip" else "clip")
    # Along the update, noise changes its length by no more than chance; across, it makes it longer.
    shortened = _CHANCE * _local_std(clip)
    if clip.name != "clip" and observation.returned:
        return False
    norm = math.sqrt(sum(float(value.double().square().sum()) for value in observation.update.values()))
    return largest is not None and names[-1] == clip.name and norm < _SURELY_BELOW * largest - shortened


def _local_std(clip: Spec) -> float:
    """Standard deviation of the noise that a filter adds to what it clipped; 0 for one that adds none."""
    if clip.name != "local-dp":
        return 0.0
    try:
        chain = gradient_defence(clip.text)
    except ValueError:  # announced, and not one that exists
        return 0.0
    return sum(part.std for part in chain.parts if isinstance(part, LocalDp)) if chain is not None else 0.0


def _units(observation: Observation, parts: Sequence[Spec]) -> dict[str, float]:
    """What the numbers of each tensor are divided by, over the mean of all; empty where it is the same for all."""
    options = {part.name: part for part in parts}
    if "sign" in compared_parts(options):
        # Signs were multiplied by their tensor's mean magnitude: in its units all of them are 1.
        return _relative({name: float(value.abs().max()) for name, value in _filled(observation).items()})
    bits = options["quantise"].integer("bits") if "quantise" in options else None
    return {} if bits is None else _relative(_rounding_errors(observation, bits, options))


def _rounding_errors(observation: Observation, bits: int, options: Mapping[str, Spec]) -> dict[str, float]:
    """Standard deviation of what rounding and noise changed in each tensor.

    A number that is rounded at random to one of its two neighbours, a step apart, has a squared error of a sixth of the
    step's square, averaged over where between them it may lie.
    """
    added = sum((options[name].number("std") or 0.0) ** 2 for name in ("noise", "laplace") if name in options)
    levels = Quantise(bits=bits).levels
    steps = {name: float(value.abs().max()) / levels for name, value in _filled(observation).items()}
    return {name: math.sqrt(step**2 / 6 + added) for name, step in steps.items()}


def _filled(observation: Observation) -> dict[str, Tensor]:
    """Tensors of the update that have numbers, and not zeros alone."""
    return {name: value for name, value in observation.update.items() if bool((value != 0).any())}


def _relative(sizes: Mapping[str, float]) -> dict[str, float]:
    mean = sum(sizes.values()) / max(1, len(sizes))
    return {name: size / mean for name, size in sizes.items()} if mean > 0 else {}
