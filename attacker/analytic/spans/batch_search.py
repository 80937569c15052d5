"""All inputs of a batch, one by one: searched in what is left of both spaces, polished in the whole of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Generator, Tensor

from attacker.analytic.spans.deflation import BackwardPass, Deflation
from attacker.analytic.spans.two_spans import SpanSearch, TwoLayers
from attacker.optim.deadline import time_is_up

ARRIVED: Final = 0.03
"""Share of the misfit of random inputs below which a search has arrived; local minima end above."""

_NEAR: Final = 0.1
"""The same before the whole spaces are used."""

AGREES: Final = 0.02
"""Largest disagreement of the two gradients about an input that counts as found."""

_DECIDED: Final = 0.02
"""Largest `BackwardPass.gap` of an input that counts as found."""

_UNITS_PER_UNKNOWN: Final = 5
"""Units whose equations are used for each unknown; fewer have local minima of their own, more take longer."""

_POLISHING: Final = 40
_SAME: Final = 1e-3
"""Relative distance below which two inputs are one."""

_LARGEST: Final = 1.5
"""Of random starts, times the size of an input whose numbers have variance 1."""


@dataclass(frozen=True, kw_only=True)
class BatchInputs:
    """What was found of a batch.

    Attributes:
        inputs: (found, features), what entered the first layer.
        backward: What each sent back.
        rank: Most that can be found: the smaller of the two gradients' ranks.
        starts: Searches that were made.
    """

    inputs: Tensor
    backward: list[BackwardPass]
    rank: int
    starts: int


@dataclass(kw_only=True)
class _State:
    inputs: list[Tensor] = field(default_factory=list)
    backward: list[BackwardPass] = field(default_factory=list)
    starts: int = 0
    failed: int = 0


def find_inputs(
    layers: TwoLayers, generator: Generator, *, at_once: int = 8, patience: int = 64, steps: int = 40
) -> BatchInputs:
    """Search, take out what is found, and go on with what is left.

    Args:
        layers: The two layers.
        generator: Source of starts, on the CPU.
        at_once: Starts that are searched together.
        patience: Starts in a row that may fail before the rest is given up.
        steps: Steps of each search.
    """
    deflation, state = Deflation(layers), _State()
    whole = SpanSearch(layers, layers.first.right, layers.second.right)
    typical = _typical(whole, layers, generator)
    rank = min(layers.first.rank, layers.second.rank)
    while len(state.inputs) < rank and state.failed < patience:
        inside, target = deflation.remaining(state.backward)
        units = _some_units(layers, len(inside), len(target), generator)
        search = SpanSearch(layers, inside, target, units, dtype=torch.float32)  # what is near is polished in float64
        starts = _starts(search, layers, at_once, generator)
        level = float(search.misfit(starts).median())
        found = search.descend(starts, steps)
        state.starts += at_once
        # A space of one dimension has one point whose last coordinate is 1.
        near = found.inputs[found.misfits < _NEAR * level] if search.unknowns else found.inputs[:1]
        polished = whole.descend(whole.coordinates(near), _POLISHING, near=True)
        taken = _take(state, deflation, polished.inputs, polished.misfits / typical, rank)
        state.failed = 0 if taken else state.failed + at_once
        if time_is_up():
            break
    features = layers.weight.shape[1] - 1
    inputs = torch.stack(state.inputs)[:, :-1] if state.inputs else layers.weight.new_zeros(0, features)
    return BatchInputs(inputs=inputs, backward=state.backward, rank=rank, starts=state.starts)


def _take(state: _State, deflation: Deflation, inputs: Tensor, misfits: Tensor, rank: int) -> bool:
    """Keep what is new among the inputs that fit, the best first; whether there was anything."""
    before = len(state.inputs)
    for place in misfits.argsort().tolist():
        if len(state.inputs) == rank or not float(misfits[place]) < ARRIVED:
            break
        if any(_distance(inputs[place], other) < _SAME for other in state.inputs):
            continue
        backward = deflation.backward(inputs[place])
        if backward.misfit < AGREES and backward.gap < _DECIDED:
            state.inputs.append(inputs[place])
            state.backward.append(backward)
    return len(state.inputs) > before


def _distance(one: Tensor, other: Tensor) -> float:
    return float(torch.linalg.vector_norm(one - other) / torch.linalg.vector_norm(other))


def _typical(search: SpanSearch, layers: TwoLayers, generator: Generator) -> float:
    """Misfit of random inputs, with which others are compared: nearly linear activations misfit little anywhere."""
    if not search.unknowns:
        return math.inf  # the one point there is
    return float(search.misfit(_starts(search, layers, 32, generator)).median())


def _starts(search: SpanSearch, layers: TwoLayers, count: int, generator: Generator) -> Tensor:
    """(count, unknowns): random mixtures of the gradient's rows, which are mixtures of inputs."""
    left = layers.first.left
    sizes = torch.linalg.vector_norm(left, dim=0)
    rows = torch.randn(count, len(sizes), generator=generator, dtype=torch.float64).to(left) * sizes
    mixtures = rows @ layers.first.right
    usual = (layers.weight.shape[1] - 1) ** 0.5
    if not layers.first_bias:  # nothing tells the size of a mixture
        factors = torch.rand(count, 1, generator=generator, dtype=torch.float64).to(left) * _LARGEST
        return search.coordinates(mixtures * factors * usual / torch.linalg.vector_norm(mixtures, dim=1, keepdim=True))
    z = search.coordinates(mixtures / mixtures[:, -1:])
    lengths = torch.linalg.vector_norm(z, dim=1, keepdim=True).clamp_min(1e-300)
    starts: Tensor = z * (_LARGEST * usual / lengths).clamp_max(1.0)
    return starts


def _some_units(layers: TwoLayers, inside: int, target: int, generator: Generator) -> Tensor | None:
    units, wanted = len(layers.weight), _UNITS_PER_UNKNOWN * inside + target
    if wanted >= units:
        return None
    return torch.randperm(units, generator=generator)[:wanted].to(layers.weight.device)
