"""The maps of a batch's images, each with its size and label, from a basis of all mixtures of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from scipy.optimize import linear_sum_assignment
from torch import Generator, Tensor

from attacker.analytic.convolutions.known_maps import FedConvolution, MapsOfModel, output_gradients
from attacker.analytic.convolutions.patch_span import SpannedMaps
from attacker.analytic.sparse_columns import SparseColumn, SparseColumns
from attacker.gradients.replay import Replay
from attacker.reasons import Reason, because

SAMPLES: Final = 200_000
"""Submatrices whose kernels are taken to tell images apart, at most."""

EXPLAINED: Final = 0.05
"""Of the gradients at the outputs, relative, what maps of the right size may leave over."""

ROUNDING: Final = 1e-7
"""Of a map, the least that its error is taken for."""

NEGATIVE: Final = 0.05
"""What a map may fall below zero, relative to its largest value: ReLUs return nothing negative."""

_FIRST: Final = 0.35
"""Logarithm of the factor between sizes that are tried first."""

_EITHER_WAY: Final = 10
"""Sizes that are tried first on either side of the usual one."""

_TRIES: Final = 17
_SETTLED: Final = 1e-9
"""Logarithm of the factor at which a size is found; each round of tries comes eight times closer."""


@dataclass(frozen=True, kw_only=True)
class ImageMaps:
    """What entered a convolution for each image.

    Attributes:
        values: (batch, channels, height, width).
        labels: (batch,), in the same order.
        residual: Relative; what the gradients at the layer's outputs leave over.
    """

    values: Tensor
    labels: Tensor
    residual: float


def unmixed(spanned: SpannedMaps, generator: Generator) -> Tensor | Reason:
    """The maps of single images, up to their size: those among all mixtures that are zero in many places.

    Args:
        spanned: A basis of the mixtures.
        generator: For the search, on the CPU.

    Returns:
        (batch, channels, height, width), negative by rounding alone, each of norm 1; or why they were not found.
    """
    basis = torch.linalg.qr(spanned.maps.flatten(1).T).Q
    batch = len(spanned.maps)
    columns = basis
    if batch > 1:

        def enough(candidates: list[SparseColumn]) -> bool:
            return len(candidates) >= batch

        noise = max(spanned.error, ROUNDING) * len(basis) ** -0.5
        found = SparseColumns(basis, noise).search(SAMPLES, generator, enough).candidates[:batch]
        if len(found) < batch or torch.linalg.matrix_rank(torch.stack([one.vector for one in found])) < batch:
            return because("maps-not-told-apart", found=len(found), images=batch)
        columns = torch.stack([torch.where(one.zeros, 0, one.column) for one in found], dim=1)
    signed: Tensor = columns * columns.sum(dim=0).sign()
    below = -signed.amin(dim=0)
    if bool((below > NEGATIVE * signed.amax(dim=0)).any()):
        return because("maps-negative")
    maps: Tensor = signed.T.reshape(spanned.maps.shape)
    return maps


def sized(
    replay: Replay,
    gradient: Mapping[str, Tensor],
    maps: MapsOfModel,
    layer: FedConvolution,
    units: Tensor,
    labels: Tensor,
) -> ImageMaps | Reason:
    """Maps of the right size, with their labels.

    The patches of all maps are independent, so that the layer's gradient gives d_p for each position of each image, up
    to the map's size c: ``c d_p``. The layers behind give d_p for any c and label.

    Args:
        replay: The model in float64, weights and buffers.
        gradient: Gradient of the loss, by name.
        maps: Maps of the model.
        layer: The convolution that they enter.
        units: (batch, channels, height, width), maps up to their size.
        labels: (batch,), in any order.
    """
    batch = len(units)
    patches = layer.patches.take(units)[:, 0].transpose(1, 2).flatten(0, 1)  # (batch * positions, numbers)
    told = gradient[layer.weight].to(units).flatten(1) @ torch.linalg.pinv(patches)
    told = told.reshape(len(told), batch, -1).transpose(0, 1)  # (batch, outputs, positions)

    def missed(sizes: Tensor, given: Tensor) -> Tensor:
        """What is left over of each image, (tries, batch), for (tries, batch) sizes and labels."""
        known = {layer.map: (units * sizes[:, :, None, None, None]).flatten(0, 1)}
        steep = output_gradients(replay, known, given.flatten(), [layer.name], first=layer.map, batch_size=batch)[
            layer.name
        ].reshape(len(sizes), *told.shape) * len(sizes)  # the loss is a mean over all tries
        left: Tensor = (told - sizes[:, :, None, None] * steep).flatten(2).norm(dim=2)
        return left

    usual = maps.norms[layer.map] * units[0].numel() ** 0.5
    sizes, places = _first_sizes(missed, labels, told.new_full((batch,), usual))
    labels, step = labels[places], _FIRST
    while step > _SETTLED:
        tried = sizes * torch.exp(step * torch.linspace(-1, 1, _TRIES).to(sizes))[:, None]
        left, best = missed(tried, labels.expand(_TRIES, -1)).nan_to_num(torch.inf, torch.inf).min(dim=0)
        sizes, step = tried.gather(0, best[None])[0], step * 2 / (_TRIES - 1)
    residual = float(left.norm() / told.norm())
    if not residual < EXPLAINED:
        return because("maps-unexplained", name=layer.name, residual=residual)
    return ImageMaps(values=units * sizes.reshape(-1, 1, 1, 1), labels=labels, residual=residual)


def _first_sizes(missed: Callable[[Tensor, Tensor], Tensor], labels: Tensor, usual: Tensor) -> tuple[Tensor, Tensor]:
    """For each image a size, and which of the labels is its own, by trying some of each."""
    sizes = usual * torch.exp(_FIRST * torch.arange(-_EITHER_WAY, _EITHER_WAY + 1)).to(usual)[:, None]
    left = torch.stack([missed(sizes, one.expand_as(sizes)) for one in labels], dim=2)  # (size, image, label)
    least, which = left.nan_to_num(torch.inf, torch.inf).min(dim=0)
    _, columns = linear_sum_assignment(least.clamp(max=torch.finfo(least.dtype).max ** 0.5).cpu().numpy())
    places = torch.from_numpy(columns).to(labels.device)
    return sizes.gather(0, which.gather(1, places[:, None]).T)[0], places
