"""One layer's equations by a factor of their normal matrix: a few iterations where the plain solver needs thousands."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from attacker.analytic.linear_systems import LayerSystem, Patches
from attacker.analytic.row_weights import WeightedEquations
from attacker.optim.lsmr import Solution, solve

MOST_UNKNOWNS: Final = 6_000
"""Above, factors cost more than they save, and hundreds of megabytes: their work grows with the third power."""

_RIDGE: Final = 1e-7
"""Of the mean diagonal, added to it: what float32 can tell from zero."""
_CLEAR: Final = 100.0
"""Square of the smallest pivot in ridges; below, columns may depend on each other, and the factor would decide how."""
_ITERATIONS: Final = 100
_PASSES: Final = 4
_SETTLED: Final = 1e-12


def is_factored(equations: WeightedEquations) -> bool:
    """Whether `solve_determined` takes such equations: not behind pooling, and of few enough unknowns."""
    return equations.system.behind is None and equations.system.patches.unknowns <= MOST_UNKNOWNS


def memory_of_factor(unknowns: int) -> int:
    """Bytes of a normal matrix and its factor, in float32; 0 where there is none."""
    return 3 * 4 * unknowns**2 if unknowns <= MOST_UNKNOWNS else 0


def solve_determined(equations: WeightedEquations, rows: Tensor) -> Solution:
    """Minimise ``|A x - b|`` where A has full column rank, for each victim by itself.

    The Cholesky factor R of ``A' A``, in float32, is a preconditioner: LSMR on ``A R^-1`` ends after about five
    iterations, to be repeated on the residual until nothing changes. What is solved is the system itself, to the
    precision of ``rows``. Where the factor shows that columns may depend on each other, and where LSMR does not end,
    the plain solver is taken, which finds the solution of minimum norm.

    Args:
        equations: Equations that `is_factored` lets pass.
        rows: b, (v, rows).
    """
    places = _places(equations.system)
    found = [_solved(_of_one(equations, place), rows[place : place + 1], places) for place in range(len(rows))]
    return Solution(
        x=torch.cat([solution.x for solution in found]),
        residuals=torch.cat([solution.residuals for solution in found]),
        iterations=max(solution.iterations for solution in found),
        converged=torch.cat([solution.converged for solution in found]),
    )


def normal_matrix(equations: WeightedEquations, places: Tensor | None = None) -> Tensor:
    """``A' A`` of one victim in float32, (unknowns, unknowns).

    Weight constraints couple the inputs of one patch: each output position adds the block ``W' diag(weights^2) W``.
    Gradient constraints couple positions of one channel, and all channels alike.

    Args:
        equations: Equations of one victim, without anything behind the layer.
        places: Where the blocks belong, which is the same for all victims; None works it out.
    """
    system, patches = equations.system, equations.system.patches
    unknowns, groups = patches.unknowns, patches.groups
    weights = equations.weights.float().reshape(groups, -1, patches.positions).square().transpose(1, 2)
    kernels = system.kernels[0].float()
    blocks = kernels.transpose(1, 2)[:, None] @ (weights[..., None] * kernels[:, None])
    # One row and column more takes what falls on padding.
    matrix = torch.zeros((unknowns + 1) ** 2, device=weights.device)
    matrix.index_add_(0, _places(system) if places is None else places, blocks.flatten())
    matrix = matrix.reshape(unknowns + 1, unknowns + 1)[:unknowns, :unknowns]
    size, channels = patches.shape[1] * patches.shape[2], patches.shape[0] // groups
    for group in range(groups):
        block = _of_gradient_rows(equations, group)
        for first in range(group * channels * size, (group + 1) * channels * size, size):
            matrix[first : first + size, first : first + size] += block
    return matrix


def _of_one(equations: WeightedEquations, place: int) -> WeightedEquations:
    own = slice(place, place + 1)
    system = equations.system
    weight = system.weight if len(system.kernels) == 1 else system.weight[own]
    return WeightedEquations(
        system=replace(system, weight=weight, delta=system.delta[own]),
        weights=equations.weights[own],
        scale=equations.scale[own] if len(equations.scale) > 1 else equations.scale,
        shape=torch.Size((1, *equations.shape[1:])),
    )


def _solved(equations: WeightedEquations, rows: Tensor, places: Tensor) -> Solution:
    """The system of one victim."""
    factor = _factor(normal_matrix(equations, places))
    if factor is None:
        return solve(equations.apply, equations.transposed, rows)

    def back(y: Tensor) -> Tensor:
        x: Tensor = torch.linalg.solve_triangular(factor.mT, y.float().T, upper=True)
        return x.T.to(rows.dtype)

    def forth(x: Tensor) -> Tensor:
        y: Tensor = torch.linalg.solve_triangular(factor, x.float().T, upper=False)
        return y.T.to(rows.dtype)

    x, used = torch.zeros_like(equations.transposed(rows)), 0
    for _ in range(_PASSES):
        step = solve(
            lambda y: equations.apply(back(y)),
            lambda r: forth(equations.transposed(r)),
            rows - equations.apply(x),
            iterations=_ITERATIONS,
        )
        used += step.iterations
        if not bool(step.converged.all()):
            return solve(equations.apply, equations.transposed, rows)
        change = back(step.x)
        x = x + change
        if bool(change.norm() <= _SETTLED * x.norm()):
            break
    length = rows.norm(dim=1)
    residuals = (rows - equations.apply(x)).norm(dim=1) / torch.where(length == 0, 1, length)
    return Solution(x=x, residuals=residuals, iterations=used, converged=torch.ones_like(residuals, dtype=torch.bool))


def _factor(matrix: Tensor) -> Tensor | None:
    """The lower Cholesky factor of a normal matrix, which it changes; None where columns may depend on each other."""
    ridge = _RIDGE * matrix.diagonal().mean()
    matrix.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    clear = not bool(failed) and bool(factor.diagonal().min().square() > _CLEAR * ridge)
    return factor if clear else None


def _of_gradient_rows(equations: WeightedEquations, group: int) -> Tensor:
    """The block ``K(d)' K(d)`` of each channel of a group, (positions, positions) of its input."""
    rows = gradient_rows(equations.system.patches, (equations.system.deltas[0, group] * equations.scale[0]).float())
    return rows.T @ rows


def gradient_rows(patches: Patches, deltas: Tensor) -> Tensor:
    """The block K(d) of each channel of a group, (outputs * kernel entries, positions of its input).

    Args:
        patches: Geometry of the layer.
        deltas: (outputs of the group, positions).
    """
    # Row (output, kernel entry) of K(d) is d moved to where that entry touches the input.
    eye = torch.eye(patches.kernel[0] * patches.kernel[1], dtype=deltas.dtype, device=deltas.device)
    columns = (eye[None, :, :, None] * deltas[:, None, None, :]).reshape(-1, len(eye), patches.positions)
    return replace(patches, shape=(1, *patches.shape[1:]), groups=1).put(columns).flatten(1)


def _places(system: LayerSystem) -> Tensor:
    """Where each entry of each position's block belongs in a flat matrix with one row and column more, for padding."""
    patches = system.patches
    number = torch.arange(1, patches.unknowns + 1, dtype=torch.float64, device=system.delta.device)
    entries = patches.take(number.reshape(1, *patches.shape))[0].round().long() - 1
    entries = torch.where(entries < 0, patches.unknowns, entries).transpose(1, 2)
    return (entries[..., :, None] * (patches.unknowns + 1) + entries[..., None, :]).flatten()
