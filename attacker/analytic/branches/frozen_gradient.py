"""The gradient that a frozen layer would have, from the gradients of the low-rank branch beside it.

With ``y = W x + b + s B A x`` and G the gradient by W, which nobody computes, the branch's gradients are its sketches
from both sides: ``dA = s B' G`` and ``dB = s G A'``. G sums an outer product for each vector that entered the layer.
Where these are no more than the branch's rank r, the columns of dB span those of G, so that ``G = U X`` with U known,
and X is the solution of ``s B' U X = dA``: nothing of G is lost (generalised Nystroem). Where there are more, dA is r
mixtures of them, and no gradient of full rank is determined. While B is zero, as it starts, dA is zero: then the update
says only what A makes of the vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Generator, Tensor, nn

from attacker.analytic.branches.low_rank_branch import LowRankBranch
from attacker.analytic.heads.update_rounding import rounding_of
from attacker.analytic.spans.signal_rank import EDGE
from attacker.gradients.observed import observed_gradient
from attacker.model_copy import copied
from attacker.optim.double_precision import precise
from attacker.optim.least_squares import least_squares
from attacker.reasons import Reason, because
from attacker.victim import Victim
from fl_precode.observation import Observation

_DRAWS: Final = 3


@dataclass(frozen=True, kw_only=True)
class FrozenGradient:
    """What a branch's gradients say of the frozen layer's.

    Attributes:
        gradient: (outputs, features), of the frozen weight, float64.
        rank: Vectors that it sums.
        error: What rounding leaves in it, relative to its size.
    """

    gradient: Tensor
    rank: int
    error: float


def frozen_gradient(branch: LowRankBranch, observation: Observation) -> FrozenGradient | Reason:
    """The frozen weight's gradient, or why the branch's gradients do not determine it.

    Args:
        branch: One of the model's branches.
        observation: A gradient, or one local step.
    """
    gradient = observed_gradient(observation)
    known = {**observation.buffers, **observation.parameters}
    risen = known[f"{branch.up}.weight"].double()
    sunk = f"{branch.down}.weight"
    if sunk not in gradient or not bool((gradient[sunk] != 0).any()):
        return because("branch-is-zero", name=branch.up, rank=len(known[sunk]))
    down, up = (gradient[f"{name}.weight"].double() for name in (branch.down, branch.up))
    images = observation.batch_size
    errors = [rounding_of(observation, f"{name}.weight", images or 1) for name in (branch.down, branch.up)]
    left, values, _ = torch.linalg.svd(up, full_matrices=False)
    noise = errors[1] / up.numel() ** 0.5 * sum(side**0.5 for side in up.shape)
    rank = int((values > EDGE * noise).sum())
    vectors = None if images is None else images * branch.positions
    if rank == len(down) and (vectors is None or vectors > rank):
        return because(
            "branch-rank-cut", name=branch.base, rank=rank, vectors=vectors or f"{branch.positions} an image"
        )
    if rank == 0:
        return because("rank-unclear.noise", name=f"{branch.up}.weight", first=float(values[0]), noise=noise)
    solved = _solve(up, down, risen, rank)
    # What rounding makes of it is found by solving again with errors as large; the largest of a few.
    generator, error = Generator().manual_seed(0), 0.0
    for _ in range(_DRAWS):
        other = _solve(_with_errors(up, errors[1], generator), _with_errors(down, errors[0], generator), risen, rank)
        error = max(error, float((other - solved).norm() / solved.norm()))
    return FrozenGradient(gradient=solved / branch.scale, rank=rank, error=error)


def _solve(up: Tensor, down: Tensor, risen: Tensor, rank: int) -> Tensor:
    left = torch.linalg.svd(up, full_matrices=False)[0][:, :rank]
    solution: Tensor = left @ least_squares(risen.T @ left, down)
    return solution


def _with_errors(values: Tensor, size: float, generator: Generator) -> Tensor:
    drawn = torch.randn(values.shape, generator=generator, dtype=torch.float64).to(values)
    moved: Tensor = values + size / values.numel() ** 0.5 * drawn
    return moved


@dataclass(frozen=True, kw_only=True)
class WithoutBranches:
    """The same update as that of a model of plain layers.

    Attributes:
        victim: With each branch added to the weight that it stands beside.
        observation: With these weights, and their gradients where they are determined.
        error: Largest relative error of these.
        solved: Names of layers whose gradient is determined.
        lost: Why the others' are not, by name.
    """

    victim: Victim
    observation: Observation
    error: float
    solved: Sequence[str]
    lost: Sequence[Reason]


def without_branches(victim: Victim, branches: Sequence[LowRankBranch], observation: Observation) -> WithoutBranches:
    """The victim and the update as if the frozen layers had been trained, not the branches beside them; in float64.

    Args:
        victim: Public knowledge about the model; stays as it is.
        branches: Those of its model, at least one.
        observation: Its update.
    """
    model = copied(victim.model)
    found, lost, known = {}, [], {**observation.buffers, **observation.parameters}
    gone = tuple(f"{branch.name}." if branch.name else "" for branch in branches)
    parameters, update, buffers = (
        {name: value for name, value in values.items() if not name.startswith(gone)}
        for values in (observation.parameters, observed_gradient(observation), observation.buffers)
    )
    for branch in branches:
        layer = _merged(branch, victim.model, known)
        model = _with_layer(model, branch.name, layer)
        prefix = f"{branch.name}." if branch.name else ""
        own = {f"{prefix}{name}": value.detach() for name, value in layer.named_parameters()}
        solved = frozen_gradient(branch, observation)
        if isinstance(solved, Reason):
            lost.append(solved)
        else:
            weight = f"{prefix}weight"
            parameters[weight], found[branch.name] = own.pop(weight), solved.error
            update[weight] = solved.gradient
        buffers |= own
    # Rounding to float32 once more would add directions of its own to a gradient whose rank is known.
    parameters, update, buffers = (
        {name: precise(value) if value.is_floating_point() else value for name, value in values.items()}
        for values in (parameters, update, buffers)
    )
    model = model.to(next(iter(update.values()))) if update else model
    constants = {name for name, _ in model.named_parameters()} - parameters.keys()
    changed = replace(
        observation, parameters=parameters, update=update, buffers=buffers, kind="gradient", frozen=frozenset(constants)
    )
    return WithoutBranches(
        victim=replace(victim, model=model),
        observation=changed,
        error=max(found.values(), default=0.0),
        solved=list(found),
        lost=lost,
    )


def _merged(branch: LowRankBranch, model: nn.Module, known: Mapping[str, Tensor]) -> nn.Linear:
    """One layer that does what the frozen one and the branch do together, at the weights that were sent."""
    base = model.get_submodule(branch.base)
    assert isinstance(base, nn.Linear)
    risen, sunk = known[f"{branch.up}.weight"], known[f"{branch.down}.weight"]
    weight = known[f"{branch.base}.weight"] + branch.scale * risen @ sunk
    layer = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None).to(weight)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if base.bias is not None:
            layer.bias.copy_(known[f"{branch.base}.bias"])
    return layer


def _with_layer(model: nn.Module, name: str, layer: nn.Linear) -> nn.Module:
    if not name:
        return layer
    parent, _, own = name.rpartition(".")
    model.get_submodule(parent)._modules[own] = layer
    return model
