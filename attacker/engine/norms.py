"""Normalisation layers that treat every image, or every candidate, by itself, and their share of the inner products.

The gradients of scale and shift are sums over images and places, ``sum d * xhat`` and ``sum d``, where xhat is the
normalised input: by running statistics in evaluation mode (batch norm), by those of the candidate's images
(`BatchStatisticsNorm`), or by the image's own (layer, group and instance norm), which autograd differentiates exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from attacker.engine.batch_norm import BatchStatisticsNorm
from attacker.engine.layers import LayerProducts, LayerShare

NormLayer = (
    nn.BatchNorm1d
    | nn.BatchNorm2d
    | BatchStatisticsNorm
    | nn.InstanceNorm1d
    | nn.InstanceNorm2d
    | nn.GroupNorm
    | nn.LayerNorm
)
Statistics = tuple[Tensor, Tensor]
"""Means and variances of all channels, (victims, channels) each, or (1, channels) when all victims share them."""

NORM_LAYERS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    BatchStatisticsNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.GroupNorm,
    nn.LayerNorm,
)


def runs_on_statistics(layer: nn.Module) -> bool:
    """Whether the layer normalises by running statistics now."""
    if not isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.InstanceNorm1d | nn.InstanceNorm2d):
        return False
    return not layer.training and layer.track_running_stats and layer.running_mean is not None


def mixes_images(layer: nn.Module) -> bool:
    """Whether the layer normalises by statistics of the batch."""
    return isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and not runs_on_statistics(layer)


def affine(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``images * scale + shift`` by channel, for images (victims * n, channels, ...), one pass over the memory.

    Args:
        images: The flat batch.
        scale: (victims, channels), or (1, channels).
        shift: As ``scale``.
    """
    by_victim = images.reshape(len(scale), -1, *images.shape[1:])
    shape = (len(scale), 1, -1, *[1] * (images.dim() - 2))
    return torch.addcmul(shift.reshape(shape), by_victim, scale.reshape(shape)).flatten(0, 1)


def normalised(layer: NormLayer, images: Tensor, statistics: Statistics | None) -> Tensor:
    """The layer's input without mean and with unit variance, as the layer sees both; shape of ``images``."""
    if statistics is not None:
        mean, variance = statistics
        scale = (variance + layer.eps).rsqrt()
        return affine(images, scale, -mean * scale)
    if isinstance(layer, BatchStatisticsNorm):
        return layer.normalised(images)
    if isinstance(layer, nn.LayerNorm):
        return F.layer_norm(images, layer.normalized_shape, eps=layer.eps)
    if isinstance(layer, nn.GroupNorm):
        return F.group_norm(images, layer.num_groups, eps=layer.eps)
    return F.instance_norm(images, eps=layer.eps)


def scaled(layer: NormLayer, images: Tensor, weights: Tensor | None, biases: Tensor | None) -> Tensor:
    """Normalised images scaled and shifted with weights and biases of each victim, (victims, ...)."""
    if weights is None:
        return images
    shift = torch.zeros_like(weights) if biases is None else biases
    if not isinstance(layer, nn.LayerNorm):
        return affine(images, weights, shift)
    by_victim = images.reshape(len(weights), -1, *layer.normalized_shape)
    return torch.addcmul(shift.unsqueeze(1), by_victim, weights.unsqueeze(1)).reshape(images.shape)


class ChannelSums(torch.autograd.Function):
    """``ChannelSums.apply(images, deltas)``: ``sum deltas * images`` and ``sum deltas`` over the places, (n, channels).

    Autograd would go over the memory of both nine times instead of five. First derivatives alone, as in
    `attacker.engine.convolve`.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        ctx.save_for_backward(images, deltas)
        places = tuple(range(2, images.dim()))
        return (images * deltas).sum(places), deltas.sum(places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, with_images: Tensor, alone: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Each place gets its channel's share."""
        images, deltas = ctx.saved_tensors
        shape = (*images.shape[:2], *[1] * (images.dim() - 2))
        with_images, alone = with_images.reshape(shape), alone.reshape(shape)
        to_images = deltas * with_images if ctx.needs_input_grad[0] else None
        to_deltas = torch.addcmul(alone, images, with_images) if ctx.needs_input_grad[1] else None
        return to_images, to_deltas


class NormProducts(LayerProducts):
    """A normalisation layer's share.

    Args:
        layer: The layer; see `mixes_images` for what is not possible.
        statistics: Running statistics, for a layer that runs on them.
        weights: Observed gradients of the scale, one for each victim; none when they do not count.
        biases: Observed gradients of the shift, one for each victim; none when they do not count.
    """

    def __init__(
        self, layer: NormLayer, statistics: Statistics | None, weights: Sequence[Tensor], biases: Sequence[Tensor]
    ) -> None:
        self._layer = layer
        self._statistics = statistics
        self._scales, self._shifts = bool(weights), bool(biases)
        self.vectors = tuple(torch.stack([one.flatten() for one in kind]) for kind in (weights, biases) if kind)

    def __call__(self, received: Tensor, delta: Tensor, victims: int, restarts: int) -> LayerShare:
        """Scale and shift; see `LayerProducts.__call__`."""
        if self._statistics is not None and delta.dim() > 2:
            return LayerShare(self._by_statistics(received, delta, victims, restarts), None)
        found = []
        if self._scales:
            found.append(delta * normalised(self._layer, received, self._statistics))
        if self._shifts:
            found.append(delta)
        return LayerShare([self._sums(one, victims, restarts) for one in found], None)

    def _by_statistics(self, received: Tensor, delta: Tensor, victims: int, restarts: int) -> list[Tensor]:
        """As for all layers, but the normalised input, as large as the images, is never formed."""
        assert self._statistics is not None
        with_images, alone = (
            one.reshape(victims, restarts, -1, one.shape[1]).sum(2) for one in ChannelSums.apply(received, delta)
        )
        mean, variance = (one.unsqueeze(1) for one in self._statistics)
        scales = (with_images - mean * alone) * (variance + self._layer.eps).rsqrt()
        return [one for one, wanted in ((scales, self._scales), (alone, self._shifts)) if wanted]

    def _sums(self, values: Tensor, victims: int, restarts: int) -> Tensor:
        """(victims, restarts, parameters)."""
        if isinstance(self._layer, nn.LayerNorm):
            features = torch.Size(self._layer.normalized_shape).numel()
            return values.reshape(victims, restarts, -1, features).sum(2)
        places = tuple(range(2, values.dim()))
        by_image = values.sum(places) if places else values
        return by_image.reshape(victims, restarts, -1, values.shape[1]).sum(2)

    def keep(self, victims: Sequence[int]) -> Self:
        """Some of the victims; see `LayerProducts.keep`."""
        kept, chosen = super().keep(victims), list(victims)
        if self._statistics is not None and len(self._statistics[0]) > 1:
            kept._statistics = self._statistics[0][chosen], self._statistics[1][chosen]
        return kept
