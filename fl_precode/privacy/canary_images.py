"""Canaries that are images: where they come from, and how an auditor who knows the weights finds them in an update.

They go through all that a client does to its images. Their gradients are alike, however: what a model without training
makes of noise depends on little but the label, so that they show less than directions that are chosen.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from fl_precode.defences.dp_sgd import per_example_gradients
from fl_precode.defences.on_gradients import Batch
from fl_precode.models.input_spec import InputSpec
from fl_precode.privacy.canaries import Canaries

MOST_NUMBERS = 1 << 28
"""Of all canaries' gradients together, 2 GiB: all of them are compared with one another."""

_PIECE = 64
_LEAST_RIDGE = 1e-9


def canary_images(canaries: Canaries, inputs: InputSpec) -> Batch:
    """Known random images, normalised, (count, channels, height, width), and random labels (count,)."""
    draw = Generator().manual_seed(canaries.seed)
    images = torch.rand(canaries.count, inputs.channels, inputs.height, inputs.width, generator=draw)
    return inputs.normalise(images), torch.randint(0, inputs.classes, (canaries.count,), generator=draw)


def with_canary_images(batch: Batch, canaries: Canaries, inside: NDArray[np.bool_], inputs: InputSpec) -> Batch:
    """A batch of normalised images with those canaries behind it that are in."""
    images, labels = canary_images(canaries, inputs)
    chosen = torch.from_numpy(inside)
    return torch.cat([batch[0], images[chosen].to(batch[0])]), torch.cat([batch[1], labels[chosen].to(batch[1])])


def image_scores(
    model: nn.Module, update: dict[str, Tensor], images: Batch, *, clip: float | None = None, noise: float = 0.0
) -> NDArray[np.float64]:
    """How much of each canary's gradient an update holds, all of them weighed against one another: ridge regression.

    The inner product alone is no measure: canaries' gradients have most of their length in common. Noise decides how
    far they can be told apart.

    Args:
        model: With the weights that the client received.
        update: The mean gradient, or what points along it, by name; tensors that did not come are absent.
        images: As of `canary_images`.
        clip: Largest norm of an example's gradient, where each is clipped; None for none.
        noise: Deviation of Gaussian noise over the mean weight of a canary, in the units of gradients; 0 for none.

    Returns:
        (count,) scores, of mean 0 and deviation 1.

    Raises:
        ValueError: If all gradients together are too many numbers.
    """
    numbers = sum(value.numel() for value in update.values())
    if numbers * len(images[1]) > MOST_NUMBERS:
        raise ValueError(
            f"{len(images[1])} images of {numbers:,} numbers each cannot be compared; give a count of at most "
            f"{MOST_NUMBERS // numbers}, or canaries as gradients"
        )
    each = torch.cat([_gradients(model, tuple(update), images, at) for at in range(0, len(images[1]), _PIECE)])
    if clip is not None:
        each = each / (each.norm(dim=1, keepdim=True) / clip).clamp(min=1)
    alike = each @ each.T
    ridge = max(4 * noise**2, _LEAST_RIDGE * float(alike.diagonal().mean()))
    sent = torch.cat([value.detach().cpu().double().flatten() for value in update.values()])
    weights = torch.linalg.solve(alike + ridge * torch.eye(len(alike), dtype=alike.dtype), each @ sent)
    scores: NDArray[np.float64] = ((weights - weights.mean()) / weights.std().clamp(min=1e-300)).numpy()
    return scores


def _gradients(model: nn.Module, names: tuple[str, ...], images: Batch, first: int) -> Tensor:
    piece = slice(first, first + _PIECE)
    each = per_example_gradients(model, images[0][piece], images[1][piece])
    return torch.cat([each[name].flatten(1) for name in names], dim=1).double()
