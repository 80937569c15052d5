"""Back through a chain of layers from the features at its end to the image: one linear system for each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from attacker.analytic.activation_inverses import INVERTIBLE, invert
from attacker.analytic.known_quantities import LayerReport, Leaked
from attacker.analytic.layer_chain import Step
from attacker.analytic.linear_systems import LayerSystem, Patches
from attacker.analytic.pooling import POOLS, back_through_pools, pool_back, through_pools
from attacker.analytic.row_weights import WeightedEquations, measured_rank
from attacker.gradients.uncompared_parameters import owns
from attacker.optim.lsmr import solve
from attacker.reasons import Reason, because

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_LEAST_WEIGHT = 0.03
"""Of a weight constraint relative to the best one; smaller ones would say nothing more and slow the solver."""
_VECTORS = 8
"""Vectors as long as the patches or the rows that `solve` and the products hold at once, roughly."""


@dataclass(frozen=True, kw_only=True)
class _State:
    """What is known on the way down.

    Attributes:
        values: (v, ...), what left the layer that comes next.
        gradient: Gradient of the loss with respect to it; to what entered ``pools``, where there are any.
        known: Which values are told by what came after.
        trust: Derivative of what was recovered with respect to the values: an error of the first is divided by it.
        clipped: (v,), values lost to saturation since the last linear layer.
        pools: Pooling between the next layer and ``values``.
    """

    values: Tensor
    gradient: Tensor
    known: Tensor
    trust: Tensor
    clipped: Tensor
    pools: tuple[Step, ...] = ()


def why_not_inverted(step: Step) -> Reason | None:
    """Why a layer cannot be gone through backwards, or None when it can."""
    module, kind = step.module, type(step.module)
    if step.shared:
        return because("layer-shared", name=step.name)
    if kind in (nn.Conv2d, nn.Linear) and not owns(module, "weight"):
        return because("layer-weight-computed", name=step.name, kind=step.kind)
    if kind in INVERTIBLE or kind in POOLS:
        return None
    if kind in (nn.Conv2d, nn.Linear):
        try:
            Patches.of(module, step.input_shape)  # type: ignore[arg-type]
        except ValueError as error:
            return because("layer-not-solvable.error", name=step.name, kind=kind.__name__, error=error)
        return None
    if kind in _NORMS:
        tracked = getattr(module, "running_mean", None) is not None
        return None if tracked else because("layer-normalises-by-batch", name=step.name, kind=kind.__name__)
    if kind in (nn.MaxPool2d, nn.AdaptiveMaxPool2d):
        return because("layer-keeps-largest", name=step.name, kind=kind.__name__)
    return because("layer-not-solvable", name=step.name, kind=kind.__name__)


def memory_needed(steps: Sequence[Step]) -> int:
    """Bytes for one victim, of the layer that needs most."""
    needed = 0
    for step in steps:
        if isinstance(step.module, nn.Conv2d | nn.Linear):
            patches = Patches.of(step.module, step.input_shape)
            columns = patches.groups * patches.per_patch * patches.positions
            needed = max(needed, 8 * (3 * columns + _VECTORS * (patches.unknowns + patches.weight_rows)))
    return needed


@dataclass(frozen=True, kw_only=True)
class Inverted:
    """What `invert_chain` found.

    Attributes:
        inputs: (v, channels, height, width), of the first layer.
        reports: Reports of each linear layer and pooling, from the last to the first.
        factors: What dropout multiplied its input by, (v, ...) by the layer's name.
    """

    inputs: Tensor
    reports: list[LayerReport]
    factors: Mapping[str, Tensor]


def invert_chain(steps: Sequence[Step], leaked: Leaked) -> Inverted:
    """Recover what entered the first layer.

    Values and gradients are carried from layer to layer (Zhu, Blaschko, ICLR 2021; Chen, Campbell, arXiv 2111.10178):
    activations are inverted, and each linear layer's equations are solved by least squares of minimum norm. A weight
    constraint counts by the slope of the activation behind it, because the inverse amplifies what rounding and noise
    did to the activation by as much; gradient constraints are scaled by ``|W| / |d|``.

    Args:
        steps: The chain, every step of which `why_not_inverted` lets pass.
        leaked: Leaked quantities of one image for each victim; they are entered behind the last step.
    """
    state = _fresh(leaked.features, leaked.gradient)
    reports: list[LayerReport] = []
    factors: dict[str, Tensor] = {}
    for place in range(len(steps) - 1, -1, -1):
        step, before = steps[place], steps[place - 1] if place else None
        if isinstance(step.module, POOLS):
            state = _pooled(state, step)
            if before is None or not isinstance(before.module, (nn.Conv2d, *POOLS)):
                state, report = _unpool(state)
                reports.append(report)
        elif isinstance(step.module, nn.Conv2d | nn.Linear):
            state, report = _solve(state, step, leaked)
            reports.append(report)
        else:
            if isinstance(step.module, nn.Dropout):
                inverse = invert(step.module, state.values)
                assert inverse is not None
                factors[step.name] = inverse.slopes
            state = _through(state, step, leaked)
    values = state.values.reshape(-1, *steps[0].input_shape) if steps else state.values
    return Inverted(inputs=values, reports=reports, factors=factors)


def _fresh(values: Tensor, gradient: Tensor) -> _State:
    known = torch.ones_like(values, dtype=torch.bool)
    none = torch.zeros(len(values), dtype=torch.long, device=values.device)
    return _State(values=values, gradient=gradient, known=known, trust=torch.ones_like(values), clipped=none)


def _shaped(state: _State, shape: tuple[int, ...]) -> _State:
    size = (len(state.values), *shape)
    parts = {name: getattr(state, name).reshape(size) for name in ("values", "gradient", "known", "trust")}
    return replace(state, **parts)


def _through(state: _State, step: Step, leaked: Leaked) -> _State:
    """Through an elementwise layer."""
    state = _shaped(state, step.output_shape)
    if isinstance(step.module, nn.BatchNorm1d | nn.BatchNorm2d):
        return _unnormalised(state, step, leaked)
    inverse = invert(step.module, state.values)
    assert inverse is not None
    return replace(
        state,
        values=inverse.inputs,
        gradient=state.gradient * inverse.slopes,
        known=state.known & inverse.known,
        trust=state.trust * inverse.slopes,
        clipped=state.clipped + inverse.clipped,
    )


def _unnormalised(state: _State, step: Step, leaked: Leaked) -> _State:
    """Through batch normalisation by running statistics, ``y = (x - mean) slope + bias``."""
    assert isinstance(step.module, nn.BatchNorm1d | nn.BatchNorm2d)
    shape = (-1, step.output_shape[0], *[1] * (len(step.output_shape) - 1))
    mean = leaked.buffers[step.parameter("running_mean")].reshape(shape)
    slope = (leaked.buffers[step.parameter("running_var")] + step.module.eps).rsqrt().reshape(shape)
    bias: Tensor | float = 0.0
    if step.module.affine:
        slope = slope * leaked.value(step.parameter("weight")).reshape(shape)
        bias = leaked.value(step.parameter("bias")).reshape(shape)
    slope = slope.expand_as(state.values)
    told = slope != 0
    return replace(
        state,
        values=(state.values - bias) / torch.where(told, slope, 1) + mean,
        gradient=state.gradient * slope,
        known=state.known & told,
        trust=state.trust * slope.abs(),
    )


def _pooled(state: _State, step: Step) -> _State:
    state = _shaped(state, step.output_shape) if not state.pools else state
    size = (len(state.values), *step.output_shape)
    return replace(state, pools=(step, *state.pools), gradient=pool_back(step, state.gradient.reshape(size)))


def _unpool(state: _State) -> tuple[_State, LayerReport]:
    """Through pooling alone: the smallest values that have these means."""
    pools, weights = state.pools, _weights(state)
    shape = (len(state.values), *pools[0].input_shape)
    solution = solve(
        lambda x: through_pools(pools, x.reshape(shape)).flatten(1) * weights,
        lambda rows: back_through_pools(pools, (rows * weights).reshape(state.values.shape)).flatten(1),
        state.values.flatten(1) * weights,
    )
    report = LayerReport(
        name=pools[0].name,
        unknowns=solution.x.shape[1],
        rank_bound=(weights > 0).sum(dim=1),
        residuals=solution.residuals,
        clipped=state.clipped,
        converged=solution.converged,
    )
    return _fresh(solution.x.reshape(shape), state.gradient), report


def _weights(state: _State) -> Tensor:
    """(v, rows), of the weight constraints: 0 where nothing is known, else from `_LEAST_WEIGHT` to 1."""
    trust = torch.where(state.known, state.trust, 0).abs().flatten(1)
    largest = trust.amax(dim=1, keepdim=True)
    weights = (trust / torch.where(largest == 0, 1, largest)).clamp_min(_LEAST_WEIGHT)
    return torch.where(state.known.flatten(1), weights, 0)


def _solve(state: _State, step: Step, leaked: Leaked) -> tuple[_State, LayerReport]:
    """Through a convolution or a fully connected layer."""
    assert isinstance(step.module, nn.Conv2d | nn.Linear)
    patches = Patches.of(step.module, step.input_shape)
    weight, pools = leaked.value(step.parameter("weight")), state.pools
    if not pools:
        state = _shaped(state, (patches.outputs, *patches.output_size))
    victims = len(state.values)
    delta = state.gradient.reshape(victims, patches.outputs, *patches.output_size)
    system = LayerSystem(
        patches=patches,
        weight=weight,
        delta=delta,
        behind=(lambda z: through_pools(pools, z)) if pools else None,
        behind_transposed=(lambda rows: back_through_pools(pools, rows)) if pools else None,
    )
    target = state.values
    if step.module.bias is not None:
        shift = leaked.value(step.parameter("bias")).reshape(-1, patches.outputs, 1, 1)
        shift = shift.expand(-1, -1, *patches.output_size)
        target = target - through_pools(pools, shift)
    weights = _weights(state)
    size, steepness = weight.flatten(1).norm(dim=1), delta.flatten(1).norm(dim=1)
    scale = (size / torch.where(steepness == 0, 1, steepness)).unsqueeze(1)
    gradient = leaked.gradients.get(step.parameter("weight"))
    moved = gradient is not None
    if gradient is None:  # a constant weight has no gradient: its forward equations are all there is
        gradient, scale = torch.zeros_like(weight).expand(victims, *weight.shape[1:]), torch.zeros_like(scale)
    gradient = gradient.flatten(1)
    equations = WeightedEquations(system, weights, scale, state.values.shape)
    solution = solve(
        equations.apply, equations.transposed, torch.cat([target.flatten(1) * weights, gradient * scale], dim=1)
    )
    told = (weights > 0).sum(dim=1)
    most = patches.independent_rows if moved else patches.independent_weight_rows
    rows = (told + patches.gradient_rows * moved).clamp(max=min(most, patches.unknowns - patches.untouched))
    bounded = not moved and most >= patches.unknowns - patches.untouched  # the bound alone says determined
    if pools or bounded or bool((told < weights.shape[1]).any()):  # which rows are left decides, not only how many
        rows = torch.minimum(rows, measured_rank(equations, solution.x))
    report = LayerReport(
        name=step.name,
        unknowns=patches.unknowns,
        rank_bound=rows,
        residuals=solution.residuals,
        clipped=state.clipped,
        converged=solution.converged,
    )
    x = solution.x.reshape(victims, *step.input_shape)
    return _fresh(x, system.input_gradient().reshape(x.shape)), report
