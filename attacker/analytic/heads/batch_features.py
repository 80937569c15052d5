"""Inputs of a classifier for each image of a batch, separated by its own softmax.

The gradient ``dW = D' F`` of B images has the features F (B, features) in its row space, and the gradients at the
scores D (B, classes) in its column space: ``F = Q R`` with R an orthonormal basis of the rows, and one unknown matrix Q
(B, B). The classifier itself is known: ``D = (softmax(F W' + b) - Y) / B``. So Q is the solution of

    D(Q)' Q = dW R',    D(Q)' 1 = db,

of B^2 unknowns and (B + 1)(classes - 1) equations, which have one solution where there are more classes than images.
After several local steps on the same images the features are what they were, because the trunk did not move, and the
classifier's own training is replayed in these coordinates: it costs what a classifier of B features costs.

Labels say which rows of Y are which. Images of one class are told apart by how unlike their scores are: with a
classifier of zeros, whose scores are all the same, only their sum is in the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from attacker.optim.deadline import time_is_up
from attacker.optim.least_squares import least_squares

DETERMINED: Final = 1e-2
"""Standard error of an image's features, relative to their size, below which they count as known."""

_TIMES: Final = 2.0
"""Equations count as solved when they miss less than this many times what rounding leaves by its standard deviation. A
norm of thousands of errors scatters by a few per cent: the factor is for what the count of roundings does not know."""

_COARSE: Final = 1e-4
"""Solved equations that may miss this much do not tell a false minimum from the solution: those were measured from 3e-4
on. Then all starts are made, and what explains the update as well as the best does counts as a solution, too."""

_LEAST_GAIN: Final = 1e-3
_POLISHING_GAIN: Final = 1e-6
"""Share of the squared residual below which a step of a search, and of its last part, was the last: images that are
alike are told apart along a flat valley."""

_SEARCH: Final = 1_000
"""Times the last digit of the numbers that are searched with: what the search itself may leave."""

_SPREADS: Final = (0.3, 1.0, 3.0)
"""Standard deviations of the scores that searches start from, in turn."""


@dataclass(frozen=True, kw_only=True)
class HeadTraining:
    """What is known of a classifier's training on the features of one batch.

    Attributes:
        weight: (classes, features), before.
        bias: (classes,), before; zeros where there is none.
        weight_gradient: (classes, features): the gradient, or the mean of several steps' gradients.
        bias_gradient: (classes,); None where the bias does not move.
        steps: Steps of SGD on the whole batch.
        learning_rate: Learning rate of these steps; it does not matter for one step.
        momentum: Momentum of these steps.
        rounding: Norm of the error that rounding leaves in the weight's gradient (`update_rounding`).
        bias_rounding: The same of the bias's.
    """

    weight: Tensor
    bias: Tensor
    weight_gradient: Tensor
    bias_gradient: Tensor | None
    steps: int = 1
    learning_rate: float = 1.0
    momentum: float = 0.0
    rounding: float = 0.0
    bias_rounding: float = 0.0


@dataclass(frozen=True, kw_only=True)
class BatchFeatures:
    """What entered a layer, for each image.

    Attributes:
        features: (batch, features), float64.
        labels: (batch,), in the same order; None where the equations do not need them.
        residual: Relative error of the equations; 0 is perfect.
        solved: Largest residual that rounding explains; above, features are wrong.
        errors: (batch,), standard error of each image's features relative to their size, by what rounding leaves and
            by what other solutions say; infinite where nothing limits it.
        starts: Starts of the search for them, 0 where there was none.
        direction_only: Whether they are known up to a factor, which may be negative.
    """

    features: Tensor
    labels: Tensor | None
    residual: float
    solved: float
    errors: Tensor
    starts: int = 0
    direction_only: bool = False

    @property
    def determined(self) -> int:
        """Images whose features are known to `DETERMINED`."""
        return int((self.errors < DETERMINED).sum()) if self.residual <= self.solved else 0


def features_of_one(weight_gradient: Tensor, bias_gradient: Tensor | None, rounding: float) -> BatchFeatures:
    """What entered a Linear layer for the one image of an update: ``dW = d h'``, of any loss and after any SGD steps.

    Without a bias it is known up to a factor. So it is for the first of two layers that LoRA adds to a frozen one,
    whose gradient ``B' d h'`` has the direction of what entered both.

    Args:
        weight_gradient: (units, features), not zero everywhere.
        bias_gradient: (units,), not zero everywhere; None where no bias moved.
        rounding: Norm of the error that rounding leaves in the gradients.
    """
    size = float(weight_gradient.norm())
    if bias_gradient is None:
        left, values, right = torch.linalg.svd(weight_gradient, full_matrices=False)
        features, explained = right[0], values[0] * torch.outer(left[:, 0], right[0])
    else:
        features = weight_gradient.T @ bias_gradient / bias_gradient.square().sum()
        explained = torch.outer(bias_gradient, features)
    residual, error = float((weight_gradient - explained).norm()) / size, rounding / size
    if bias_gradient is not None:
        error = math.hypot(error, rounding / float(bias_gradient.norm()))
    return BatchFeatures(
        features=features[None],
        labels=None,
        residual=residual,
        solved=_solved(error, weight_gradient),
        errors=weight_gradient.new_tensor([error]),
        direction_only=bias_gradient is None,
    )


def _solved(error: float, like: Tensor) -> float:
    """Largest residual of equations that hold, for a standard deviation of what rounding leaves in them."""
    return _TIMES * error + _SEARCH * torch.finfo(like.dtype).eps


def features_of_batch(
    head: HeadTraining, labels: Tensor, generator: Generator, *, starts: int = 12, steps: int = 60
) -> BatchFeatures:
    """The features that explain the classifier's update best, and how well they do.

    Args:
        head: The classifier and its update, float64.
        labels: (batch,), fewer images than classes.
        generator: Source of the starts.
        starts: At most; the search ends with the first that is solved.
        steps: Steps of Levenberg-Marquardt from each start, at most.
    """
    rows = _row_basis(head.weight_gradient, len(labels))
    equations = _Equations(head, rows, labels)
    solved = _solved(equations.error, rows)
    ends: list[tuple[float, Tensor]] = []
    for tried in range(starts):
        mixing, residual = _descend(equations, equations.start(generator, _SPREADS[tried % len(_SPREADS)]), steps)
        ends.append((residual, mixing))
        if (residual <= solved < _COARSE) or time_is_up():
            break
    ends.sort(key=lambda end: end[0])
    best, least = _descend(equations, ends[0][1], 2 * steps, least_gain=_POLISHING_GAIN)
    errors = equations.errors(best, least)
    for other in equations.as_good(least, ends[1:]):
        errors = torch.maximum(errors, _disagreement(best, other, labels))
    return BatchFeatures(
        features=best @ rows, labels=labels, residual=least, solved=solved, errors=errors, starts=len(ends)
    )


def _disagreement(best: Tensor, other: Tensor, labels: Tensor) -> Tensor:
    """(batch,), relative distance of each image's features from the nearest of its class in another solution."""
    apart = torch.cdist(best, other)
    apart[labels[:, None] != labels] = math.inf
    distances: Tensor = apart.min(dim=1).values / torch.linalg.vector_norm(best, dim=1)
    return distances


def _row_basis(matrix: Tensor, rank: int) -> Tensor:
    basis: Tensor = torch.linalg.svd(matrix, full_matrices=False)[2][:rank]
    return basis


class _Equations:
    """The classifier's training in the coordinates of the gradient's row space."""

    def __init__(self, head: HeadTraining, rows: Tensor, labels: Tensor) -> None:
        self._head, self._labels = head, labels
        self._weight = rows @ head.weight.T  # (batch, classes)
        self._goal = rows @ head.weight_gradient.T
        self._targets = F.one_hot(labels.to(rows.device), len(head.bias)).to(rows)
        self._size = float(torch.linalg.vector_norm(self._goal))
        goal = head.bias_gradient
        self._bias_size = 1.0 if goal is None else max(float(goal.norm()), 1 / len(labels))
        self._noise = head.rounding / head.weight_gradient.numel() ** 0.5

    @property
    def error(self) -> float:
        """Standard deviation of what rounding leaves in the equations, of the norm of all."""
        return math.hypot(self._head.rounding / self._size, self._head.bias_rounding / self._bias_size)

    def errors(self, mixing: Tensor, residual: float) -> Tensor:
        """(batch,), standard error of each image's features at a solution, relative to their size.

        What the equations miss says how wrong they are, where this is more than rounding; the inverse of the normal
        equations says what comes of it. Beside it stands what is outside of the row space that rounding turned: with
        the gradients at the scores known it is what they make of rounding.
        """
        directions = torch.eye(mixing.numel()).to(mixing).reshape(-1, *mixing.shape)
        _, jacobian = self.along(mixing, directions)
        unknowns, equations = jacobian.shape
        free = max(equations - unknowns, 1)
        variance = max(residual**2 / free, self.error**2 / equations)
        inverse = torch.linalg.pinv(jacobian @ jacobian.T, hermitian=True)
        inside = variance * inverse.diagonal().reshape(mixing.shape).sum(dim=1)
        deltas = least_squares(mixing.T, self._goal)  # (batch, classes)
        turned = torch.linalg.pinv(deltas.T).square().sum(dim=1) * self._noise**2 * self._head.weight.shape[1]
        errors: Tensor = (inside + turned).sqrt() / torch.linalg.vector_norm(mixing, dim=1)
        return errors.nan_to_num(nan=math.inf)

    def as_good(self, least: float, ends: Sequence[tuple[float, Tensor]]) -> list[Tensor]:
        """Which ends, of a residual each, explain the update as well as the least residual does, up to chance."""
        free = max(self._goal.numel() + len(self._head.bias) - len(self._targets) ** 2, 1)
        worst = least * (1 + 3 * (2 / free) ** 0.5) + _SEARCH * torch.finfo(self._goal.dtype).eps
        return [mixing for residual, mixing in ends if residual <= worst]

    def start(self, generator: Generator, spread: float) -> Tensor:
        """(batch, batch): what would have to enter if the scores were random and had this standard deviation."""
        drawn = torch.randn(self._targets.shape, generator=generator, dtype=torch.float64).to(self._targets)
        deltas = (torch.softmax(self._head.bias + spread * drawn, dim=1) - self._targets) / len(self._targets)
        mixing: Tensor = least_squares(deltas.T, self._goal.T)
        return mixing

    def residual(self, mixing: Tensor) -> Tensor:
        """(rows,), relative to the update's own size."""
        return self.along(mixing, mixing.new_zeros(0, *mixing.shape))[0]

    def along(self, mixing: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """The residual, and its derivative along (n, batch, batch) directions, (n, rows): training, differentiated."""
        head, count = self._head, len(self._targets)
        weight, bias, speed, bias_speed = self._weight, head.bias, 0 * self._weight, 0 * head.bias
        some = len(directions)
        d_weight, d_bias = weight.new_zeros(some, *weight.shape), bias.new_zeros(some, 1, len(bias))
        d_speed, d_bias_speed = d_weight, d_bias
        for _ in range(head.steps):
            shares = torch.softmax(mixing @ weight + bias, dim=1)
            moved = directions @ weight + mixing @ d_weight + d_bias
            d_deltas = shares * (moved - (shares * moved).sum(dim=2, keepdim=True)) / count
            deltas = (shares - self._targets) / count
            speed = head.momentum * speed + mixing.T @ deltas
            d_speed = head.momentum * d_speed + directions.mT @ deltas + mixing.T @ d_deltas
            weight, d_weight = weight - head.learning_rate * speed, d_weight - head.learning_rate * d_speed
            if head.bias_gradient is not None:
                bias_speed = head.momentum * bias_speed + deltas.sum(dim=0)
                d_bias_speed = head.momentum * d_bias_speed + d_deltas.sum(dim=1, keepdim=True)
                bias, d_bias = bias - head.learning_rate * bias_speed, d_bias - head.learning_rate * d_bias_speed
        plain = sum((head.steps - step) * head.momentum**step for step in range(head.steps))
        scale = head.learning_rate * plain
        missed = ((self._weight - weight) / scale - self._goal).flatten() / self._size
        slopes = -d_weight.flatten(1) / (scale * self._size)
        if head.bias_gradient is None:
            return missed, slopes
        bias_missed = ((head.bias - bias) / scale - head.bias_gradient) / self._bias_size
        bias_slopes = -d_bias.flatten(1) / (scale * self._bias_size)
        return torch.cat([missed, bias_missed]), torch.cat([slopes, bias_slopes], dim=1)


def _descend(
    equations: _Equations, point: Tensor, steps: int, *, least_gain: float = _LEAST_GAIN
) -> tuple[Tensor, float]:
    """Levenberg-Marquardt from a start: the mixing, and the norm of its residual."""
    directions = torch.eye(point.numel()).to(point).reshape(-1, *point.shape)
    loss, damping = float(equations.residual(point).square().sum()), 1e-2
    for _ in range(steps):
        value, jacobian = equations.along(point, directions)
        normal, slope = jacobian @ jacobian.T, jacobian @ value
        diagonal = torch.diag(normal.diagonal().clamp_min(1e-12 * float(normal.diagonal().max())))
        before = loss
        for _ in range(8):
            trial = point - torch.linalg.solve(normal + damping * diagonal, slope).reshape(point.shape)
            tried = float(equations.residual(trial).square().sum())
            if tried < loss:
                point, loss, damping = trial, tried, damping / 5
                break
            damping *= 4
        if loss > (1 - least_gain) * before or loss < 1e-28 or time_is_up():
            break
    return point, math.sqrt(loss)
