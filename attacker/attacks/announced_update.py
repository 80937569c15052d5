"""What an announced defence did to the numbers of an update, and how a search compares its candidates with them.

Searches that know a defence in the model (a bottleneck's noise, dropout's masks) take this comparison, so that one
attack knows the whole of a defence such as ``dropout+prune`` or ``precode+noise``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from attacker.attacks.matched_distance import DEFENCE_NOISE, matched_distance
from attacker.engine import Trace, why_scale_unknown
from fl_precode.defences import defence_parts
from fl_precode.observation import Observation
from fl_precode.perturb import Prune, Quantise
from fl_precode.spec import Spec

COMPARED = frozenset({"noise", "laplace", "ppp", "prune", "clip", "quantise", "soteria"})
"""Defences that a comparison takes into account, by name, in any combination with one another.

Not ``sign``, nor ``dp``, which clips each image's gradient before the sum: the direction that they leave is compared as
if they had left it as it was.
"""

_ADDS_NOISE = frozenset({"noise", "laplace", "ppp"})
_SURELY_BELOW = 0.999
"""Share of the largest norm below which rounding cannot make a clipped update look like one that was left alone."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How the update of one client is compared with candidates.

    Attributes:
        observation: The update; what noise filled in where a number had been pruned is zero again.
        distance: One of `attacker.engine.DISTANCES`.
        left_out: Parameters that do not count.
        units: As `attacker.attacks.adaptation.Knowledge.units`.
        parts: The parts of the announced defence that this takes into account, by name.
    """

    observation: Observation
    distance: str
    parts: tuple[str, ...]
    left_out: frozenset[str] = frozenset()
    units: Mapping[str, float] = field(default_factory=dict)


def announced_comparison(observation: Observation, seen: Trace) -> Comparison | str:
    """The comparison that fits the announced defence, or why the announcement cannot be.

    Noise and stochastic rounding set the distance (`matched_distance`); pruning leaves only what was sent, and where
    noise came after it the largest numbers of each tensor are taken to be those; rounding gives each tensor the unit of
    its own step, besides that of the noise; a clipped update has no scale; Soteria's layer is left out, by its weight.

    Args:
        observation: The update, with what was announced.
        seen: A trace of the model.
    """
    parts = announced_parts(observation)
    names = [part.name for part in parts]
    left_out: frozenset[str] = frozenset()
    if "soteria" in names:
        layer = parts[names.index("soteria")].options.get("layer") or _last_linear(seen)
        if f"{layer}.weight" not in observation.parameters.keys() | observation.frozen:
            return f"the layer that soteria defends, {layer!r}, is not in the model"
        left_out = frozenset({f"{layer}.weight"})
    scaled = [part for part in parts if not (part.name == "clip" and _left_alone(observation, part, names))]
    distance = matched_distance(
        "+".join(part.name for part in scaled) or "none", scale_known=why_scale_unknown(observation) is None
    )
    return Comparison(
        observation=_without_filled_zeros(observation, parts),
        distance=distance,
        parts=tuple(name for name in names if name in COMPARED),
        left_out=left_out,
        units=_units(observation, parts),
    )


def announced_parts(observation: Observation) -> list[Spec]:
    """Parts of the announced defence whose meaning is known; none where it is in nobody's terms but the client's."""
    try:
        parts = defence_parts(observation.protocol.defence or "none")
    except ValueError:
        return []
    return [part for part in parts if part.name in DEFENCE_NOISE]


def _last_linear(seen: Trace) -> str:
    """Name of the Linear layer that Soteria defends when no layer is named: the last that is no bottleneck's own."""
    inside = tuple(f"{run.name}." for run in seen.bottlenecks)
    names = [run.name for run in seen.layers if isinstance(run.module, nn.Linear) and not run.name.startswith(inside)]
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
    """Standard deviation of what noise and rounding changed in each tensor, over their root mean square.

    A number that is rounded at random to one of its two neighbours, a step apart, has a squared error of a sixth of the
    step's square, averaged over where between them it may lie.
    """
    options = {part.name: part for part in parts}
    bits = options["quantise"].integer("bits") if "quantise" in options else None
    if bits is None:
        return {}
    added = sum(options[name].number("std") or 0.0 for name in ("noise", "laplace") if name in options) ** 2
    levels = Quantise(bits=bits).levels
    variances = {
        name: (float(value.abs().max()) / levels) ** 2 / 6 + added if value.numel() else 0.0
        for name, value in observation.update.items()
    }
    sizes = {name: value.numel() for name, value in observation.update.items()}
    mean = sum(variances[name] * size for name, size in sizes.items()) / max(1, sum(sizes.values()))
    if mean == 0:
        return {}
    # A tensor of zeros was sent as it is and says so exactly; it must not decide alone.
    return {name: math.sqrt(max(variance / mean, 1e-6)) for name, variance in variances.items()}
