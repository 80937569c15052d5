"""Test that the update of a Linear layer is a sum of as many outer products as it has inputs, and the rest of it.

The gradient of N rows of input is a sum of N outer products. What stands beyond the N largest singular values came from
elsewhere: noise, and much that honest clients do. Where the rest has the form of one of these, it is named.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacker.gradients.observed import steps_behind
from attacker.gradients.trace import trace
from attacker.victim import Victim
from fl_precode.observation import Observation

_OUTSTANDING = 30.0
"""What is this many times larger than the rounding of the arithmetic is no rounding."""

_TALLEST = 600
"""Rows of a matrix up to which penalties are fitted: each of some steps decomposes it again."""

_LARGE = 400
"""Shorter side from which a matrix's singular values come from its Gram matrix: 0.2 s instead of 1.6 at 852 x 1812."""

_STEPS = 20
_SETTLED = 1e-7

_SAME_WAY = 0.25
"""Squared cosine between the rest and a penalty's gradient below which the penalty is not fitted any further."""

_NEARLY_ALL = 0.1
"""What a penalty leaves of the rest where it accounts for it: weights and signs change while clients train."""

_FEW = 0.75
"""Share of the directions of a matrix that a sum of few outer products leaves some of."""

_EVENLY = 0.5
"""Directions that the rest fills, as a share of those that independent noise fills. Measured: noise .9 to 1.1, further
images, augmented ones and momentum less than .3."""


@dataclass(frozen=True, kw_only=True)
class Beyond:
    """What the update of a Linear layer holds beyond the outer products of its inputs.

    Attributes:
        layer: Name of the layer; empty for a model that is one.
        shape: Shape of its weight.
        most: Outer products that its inputs allow: one for each row of input and step.
        size: Root mean square of what stands beyond them, as of noise that fills the matrix.
        share: The same beside the root mean square of the update.
        rest: The same as ``size`` without ``penalty``.
        rank: Outer products of which the update is a sum, up to rounding; None when it is none of few.
        penalty: What takes nearly all of the rest away when it is subtracted, ``weights`` (as weight decay adds them)
            or ``signs`` (as an L1 penalty does), and how many times; None when neither does.
        evenly: Whether the rest fills all directions alike, as independent noise does.
    """

    layer: str
    shape: tuple[int, ...]
    most: int
    size: float
    share: float
    rest: float
    rank: int | None
    penalty: tuple[str, float] | None
    evenly: bool


def layers_beyond(victim: Victim, observation: Observation) -> list[Beyond]:
    """What stands beyond the possible rank of each Linear layer's update, where one can tell.

    Args:
        victim: Public knowledge about the model.
        observation: One update, as `attacker.gradients.uncompared_parameters.settled` gives it.
    """
    rows = _rows(observation)
    return [] if rows is None else list(_of_layers(victim, observation, rows))


def rounding_of(observation: Observation) -> float:
    """Noise up to here may be the rounding of gradients, or of weights that were added and subtracted."""
    largest = max((float(value.abs().max()) for value in observation.update.values() if value.numel()), default=0.0)
    if observation.kind == "weights":
        largest += max(
            (float(weight.abs().max()) for weight in observation.parameters.values() if weight.numel()), default=0.0
        )
    kinds = [value.dtype for value in observation.update.values() if value.is_floating_point()]
    return _OUTSTANDING * largest * max((torch.finfo(kind).eps for kind in kinds), default=0.0)


def told_adam(observation: Observation) -> bool:
    """Whether each entry was divided by its own size, as was announced: the update is no sum of gradients."""
    return observation.kind == "weights" and observation.protocol.optimiser == "adam"


def _rows(observation: Observation) -> int | None:
    """Images that the update's steps used, repeated ones counted again; None when the update may have any rank."""
    steps, batch = steps_behind(observation), observation.batch_size
    if steps is None or batch is None or told_adam(observation):
        return None
    of_step = min(observation.protocol.batch_size or batch, batch)
    return batch if observation.kind == "gradient" else steps * of_step


def _of_layers(victim: Victim, observation: Observation, rows: int) -> Iterator[Beyond]:
    traced = trace(victim)
    rounding = rounding_of(observation)
    linear = [layer.module for layer in traced.layers if isinstance(layer.module, nn.Linear)]
    often = Counter(id(module.weight) for module in linear)  # each run of a weight adds as much to its rank
    for layer in traced.layers:
        weight = f"{layer.name}.weight" if layer.name else "weight"
        if not isinstance(layer.module, nn.Linear) or layer.inputs is None or weight not in observation.update:
            continue
        if often[id(layer.module.weight)] > 1:
            continue
        for_one = math.ceil(layer.inputs.numel() / layer.inputs.shape[-1] / len(traced.probe))
        change, value = observation.update[weight], observation.parameters[weight]
        after = value + change if observation.kind == "weights" else value
        beyond = _of_matrix(layer.name, change, (value, after), rows * for_one, rounding)
        if beyond is not None:
            yield beyond


def _of_matrix(name: str, change: Tensor, weights: tuple[Tensor, Tensor], most: int, rounding: float) -> Beyond | None:
    """One layer's rest, from its weights before and after; None when its matrix is too small to have one.

    Some rows and columns, chosen at random, keep it quick and have the same root mean square.
    """
    if min(change.shape) - most < max(4, most):
        return None
    generator = torch.Generator().manual_seed(0)
    columns = torch.randperm(change.shape[1], generator=generator)[: 4 * most + 1024].to(change.device)
    rows = torch.randperm(change.shape[0], generator=generator)[: 4 * most + 64].to(change.device)
    part = change[rows][:, columns].double()
    if min(part.shape) <= most:
        return None
    singular = _singular_values(part, change.dtype)
    size = _size(singular, part.shape, most)
    evenly = _evenly(singular[most:], (part.shape[0] - most, part.shape[1] - most))
    few = range(most, 0 if evenly else int(_FEW * len(singular)))
    rank = next((candidate for candidate in few if _size(singular, part.shape, candidate) <= rounding), None)
    penalty, rest = None, size
    if size > rounding and rank is None:
        before, after = (weight[rows][:, columns].double() for weight in weights)
        # Signs change while clients train.
        penalties = {"weights": before, "signs": (before.sign() + after.sign()) / 2}
        penalty, rest = _penalised(part, penalties, most, rounding, size)
    return Beyond(
        layer=name,
        shape=tuple(change.shape),
        most=most,
        size=size,
        share=size / max(float(part.square().mean().sqrt()), 1e-300),
        rest=rest,
        rank=rank,
        penalty=penalty,
        evenly=evenly,
    )


def _singular_values(part: Tensor, given: torch.dtype) -> Tensor:
    """Singular values of a part in double, the largest first.

    Of a large part whose numbers came in single precision or less, by the eigenvalues of its Gram matrix, in a seventh
    of the time: their error, 1e-8 of the largest singular value, is below what rounding left in the numbers.
    """
    if given == torch.float64 or min(part.shape) < _LARGE:
        values: Tensor = torch.linalg.svdvals(part)
        return values
    short = part if part.shape[0] <= part.shape[1] else part.T
    squares: Tensor = torch.linalg.eigvalsh(short @ short.T)
    return squares.flip(0).clamp_min(0).sqrt()


def _size(singular: Tensor, shape: torch.Size, rank: int) -> float:
    height, width = shape
    return float((singular[rank:].square().sum() / max(1, (height - rank) * (width - rank))).sqrt())


def _evenly(rest: Tensor, shape: tuple[int, int]) -> bool:
    """Whether singular values are those of independent noise: these fill short / (1 + short / long) directions."""
    short, long = sorted(shape)
    squares = rest.square()
    filled = float(squares.sum().square() / squares.square().sum().clamp_min(1e-300))
    return filled > _EVENLY * short / (1 + short / long)


def _penalised(
    part: Tensor, penalties: Mapping[str, Tensor], most: int, rounding: float, size: float
) -> tuple[tuple[str, float] | None, float]:
    """The penalty whose gradient is all of the rest, and what then remains of it."""
    if part.shape[0] > _TALLEST:
        return None, size
    for what, direction in penalties.items():
        times = _times(part, direction, most)
        if not times:
            continue
        left = _size(torch.linalg.svdvals(part - times * direction), part.shape, most)
        if left <= max(rounding, _NEARLY_ALL * size):
            return (what, times), left
    return None, size


def _times(part: Tensor, direction: Tensor, most: int) -> float:
    """How many times ``direction`` is in a matrix beside ``most`` outer products, by least squares, again and again.

    Zero where the rest looks another way at first sight.
    """
    times = 0.0
    for step in range(_STEPS):
        rest = part - times * direction
        left, _, right = torch.linalg.svd(rest, full_matrices=False)
        left, right = left[:, :most], right[:most]
        rest, aside = (_aside(matrix, left, right) for matrix in (rest, direction))
        length, inner = float(aside.square().sum()), float((rest * aside).sum())
        if not length or (step == 0 and inner**2 < _SAME_WAY * length * float(rest.square().sum())):
            return 0.0
        times += inner / length
        if abs(inner / length) <= _SETTLED * abs(times):
            break
    return times


def _aside(matrix: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """A matrix without what lies in the spaces of some left and right singular vectors."""
    matrix = matrix - left @ (left.T @ matrix)
    return matrix - (matrix @ right.T) @ right
