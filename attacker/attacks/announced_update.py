"""What an announced defence did to the numbers of an update, and how a search compares its candidates with them.

Searches that know a defence in the model (a bottleneck's noise, dropout's masks) take this comparison, so that one
attack knows the whole of a defence such as ``dropout+prune`` or ``precode+noise``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from attacker.attacks.likelihood_distance import DEFENCE_NOISE, matched_distance
from attacker.gradients.observed import why_scale_unknown
from attacker.gradients.trace import Trace
from attacker.reasons import Reason, because
from fl_precode.defences.on_gradients import Prune, Quantise
from fl_precode.defences.registry import defence_parts
from fl_precode.observation import Observation
from fl_precode.spec import Spec

COMPARED = frozenset({"noise", "laplace", "ppp", "prune", "clip", "quantise", "soteria", "sign"})
"""Defences that a comparison takes into account, by name, in any combination of which `compared_parts` says so.

Not ``dp``, which clips each image's gradient before the sum: what it leaves is compared by its direction.
"""

ANNOUNCED = "announced"
"""The value of ``distance`` that takes what fits the announced defence, and the default."""

_ADDS_NOISE = frozenset({"noise", "laplace", "ppp"})
_SURELY_BELOW = 0.999
"""Share of the largest norm below which rounding cannot make a clipped update look like one that was left alone."""


@dataclass(frozen=True, kw_only=True)
class UpdateComparison:
    """How the update of one client is compared with candidates.

    Attributes:
        observation: The update; what noise filled in where a number had been pruned is zero again.
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
    scaled = [part for part in parts if not (part.name == "clip" and _left_alone(observation, part, names))]
    distance = matched_distance(
        "+".join(part.name for part in scaled) or "none", scale_known=why_scale_unknown(observation) is None
    )
    return UpdateComparison(
        observation=_without_filled_zeros(observation, parts),
        distance=distance,
        parts=tuple(name for name in names if name in compared_parts(names)),
        left_out=left_out,
        units=_units(observation, parts),
    )


def follows_announcement(spec: Spec) -> bool:
    """Whether an adaptive attack compares updates as the announced defence asks, and not by a distance of its own."""
    return spec.options.get("distance", ANNOUNCED) == ANNOUNCED


def compared_parts(names: Collection[str]) -> frozenset[str]:
    """Of a defence's parts those that a comparison takes into account.

    Signs that noise was added to, or that were taken of noisy numbers, are compared as numbers: that knows the noise.

    >>> sorted(compared_parts(["precode", "prune", "sign"])), sorted(compared_parts(["noise", "sign"]))
    (['prune', 'sign'], ['noise'])
    """
    compared = COMPARED & set(names)
    return compared - {"sign"} if _ADDS_NOISE & compared else compared


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


def _left_alone(observation: Observation, clip: Spec, names: Sequence[str]) -> bool:
    """Whether the update is certainly shorter than the largest norm, and nothing changed it after clipping."""
    largest = clip.number("max_norm")
    norm = math.sqrt(sum(float(value.double().square().sum()) for value in observation.update.values()))
    return largest is not None and names[-1] == "clip" and norm < _SURELY_BELOW * largest


def _without_filled_zeros(observation: Observation, parts: Sequence[Spec]) -> Observation:
    """The update pruned again where noise came after pruning, by the announced share."""
    names = [part.name for part in parts]
    if "prune" not in names or not _ADDS_NOISE & set(names[names.index("prune") :]):
        return observation
    share = parts[names.index("prune")].number("share")
    if share is None:
        return observation
    pruned = Prune(share=share)(observation.update, generator=torch.Generator())
    return replace(observation, update=pruned)


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
