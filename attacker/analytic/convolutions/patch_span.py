"""Map that entered a convolution, up to a factor: all its patches lie in the row space of the gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from attacker.analytic.convolutions.leading_vectors import leading_vectors
from attacker.analytic.linear_systems import Patches
from attacker.optim.double_precision import precise
from attacker.reasons import Reason, because

SURE: Final = 0.1
"""Expected error of the maps, relative, up to which they count as found."""

NOISE: Final = 0.1
"""Of the smallest singular value that counts, the next one's size up to which there is a gap between them."""


@dataclass(frozen=True, kw_only=True)
class SpannedMaps:
    """Maps whose patches lie in the row space of a convolution's gradient.

    Attributes:
        maps: (batch, channels, height, width), a basis of them: each is a mixture of what entered for the images.
        error: Expected relative error, from how far they leave the row space and how far all others do.
    """

    maps: Tensor
    error: float


def why_no_span(patches: Patches, batch: int) -> Reason | None:
    """Why the row space of a layer's gradient cannot tell its input, or None where it may.

    Each position of each image adds one patch to the row space, as long as there are as many outputs; and it tells
    something only where patches have more numbers than there are positions. Strides leave several answers: a map moved
    by a whole stride has the same patches.
    """
    rows = patches.positions * batch
    if patches.groups != 1 or patches.stride != (1, 1) or min(patches.kernel) < 2:
        return because("convolution-tells-no-map")
    if rows > patches.outputs or rows >= patches.per_patch:
        return because("convolution-too-narrow", positions=rows, outputs=patches.outputs, numbers=patches.per_patch)
    return None


def spanned_maps(
    gradient: Tensor, patches: Patches, batch: int, *, name: str, generator: Generator
) -> SpannedMaps | Reason:
    """Maps whose patches lie in the row space of a weight's gradient, as many as there are images.

    The gradient is ``sum over positions p of d_p x_p'``, with x_p the patch at p and d_p the gradient of the loss with
    respect to the outputs there. Of linearly independent d_p, the row space is that of the patches. Maps u are weighed
    by how often patches hold each of their numbers, so that ``|P take(u)|^2`` with the projection P on the row space is
    at most ``|u|^2``, and equal where all patches lie in it: leading eigenvectors.

    Args:
        gradient: (outputs, channels, kernel, kernel).
        patches: How the layer cuts its input; `why_no_span` lets it pass.
        batch: Images.
        name: Name of the weight, for messages.
        generator: For the start.

    Returns:
        Maps; or why there are none.
    """
    rows = patches.positions * batch
    matrix = precise(gradient).flatten(1)
    _, sizes, rowspace = torch.linalg.svd(matrix, full_matrices=False)
    rounding = torch.finfo(gradient.dtype).eps * math.sqrt(matrix.numel() / min(matrix.shape))
    beyond = float(sizes[rows] if rows < len(sizes) else sizes[0] * rounding)
    if not beyond < NOISE * float(sizes[rows - 1]):
        return because("span-hidden", name=name, rank=rows)
    basis = rowspace[:rows]
    counts = patches.put(torch.ones_like(patches.take(basis.new_zeros(1, *patches.shape))))
    weights = torch.where(counts > 0, counts.clamp_min(1).rsqrt(), 0)

    filters = basis.reshape(rows, patches.shape[0], *patches.kernel)
    left, right, top, bottom = patches.padding

    def projected(block: Tensor) -> Tensor:
        maps = F.pad(block.reshape(-1, *patches.shape) * weights, patches.padding)
        inside = F.conv_transpose2d(
            F.conv2d(maps, filters, dilation=patches.dilation), filters, dilation=patches.dilation
        )
        return (F.pad(inside, (-left, -right, -top, -bottom)) * weights).flatten(1)

    found = leading_vectors(projected, patches.unknowns, batch, like=basis, generator=generator)
    if found is None:
        return because("span-not-settled", name=name)
    values, vectors = found
    missed, others = float(1 - values[batch - 1]), float(1 - values[batch])
    error = math.sqrt(max(0.0, missed) / max(others, torch.finfo(matrix.dtype).tiny))
    if not error < SURE:
        return because("span-ambiguous", name=name, error=error)
    return SpannedMaps(maps=vectors.reshape(-1, *patches.shape) * weights, error=error)
