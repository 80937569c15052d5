"""Normalisation layers that treat every image, or every candidate, by itself, and their share of the inner products.

The gradients of scale and shift are sums over images and places, ``sum d * xhat`` and ``sum d``, where xhat is the
normalised input: by running statistics in evaluation mode (batch norm), by those of the candidate's images
(`BatchStatisticsNorm`), or by the image's own (layer, group and instance norm), which autograd differentiates exactly.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from attacker.gradients.batch_norm import BatchStatisticsNorm
from attacker.gradients.ghost.layer_kinds import (
    Forward,
    LayerKind,
    LayerProducts,
    LayerShare,
    ObservedLayer,
    register_layer,
)

RunningNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.InstanceNorm1d | nn.InstanceNorm2d
Statistics = tuple[Tensor, Tensor]
"""Means and variances of all channels, (victims, channels) each, or (1, channels) when all victims share them."""

Norm = TypeVar("Norm", bound=nn.Module)


def runs_on_statistics(layer: nn.Module) -> bool:
    """Whether the layer normalises by running statistics now."""
    if not isinstance(layer, RunningNorm):
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


class NormKind(LayerKind[Norm]):
    """Layers that normalise an image by itself, then scale and shift it by channel."""

    @abstractmethod
    def normalised(self, layer: Norm, images: Tensor) -> Tensor:
        """The layer's input without mean and with unit variance, as the layer sees both; shape of ``images``."""

    def scaled(self, layer: Norm, images: Tensor, weights: Tensor, shifts: Tensor) -> Tensor:
        """Normalised images scaled and shifted with weights and shifts of each victim, (victims, ...)."""
        del layer
        return affine(images, weights, shifts)

    def sums(self, layer: Norm, values: Tensor, victims: int, restarts: int) -> Tensor:
        """Sums of values (images, ...) over a candidate's images and their places, (victims, restarts, parameters)."""
        del layer
        places = tuple(range(2, values.dim()))
        by_image = values.sum(places) if places else values
        return by_image.reshape(victims, restarts, -1, values.shape[1]).sum(2)

    def forward(self, layer: Norm, tensors: Mapping[str, Tensor | None], *, together: bool) -> Forward:
        """Normalise, scale and shift; see `LayerKind.forward`."""
        del together
        weights, biases = tensors["weight"], tensors["bias"]

        def norm(images: Tensor) -> Tensor:
            hat = self.normalised(layer, images)
            if weights is None:
                return hat
            return self.scaled(layer, hat, weights, torch.zeros_like(weights) if biases is None else biases)

        return norm

    def products(self, layer: Norm, observed: ObservedLayer) -> LayerProducts:
        """Products for scale and shift, which are vectors."""
        return NormProducts(
            lambda images: self.normalised(layer, images),
            lambda values, victims, restarts: self.sums(layer, values, victims, restarts),
            observed.gradients,
        )


@register_layer(nn.LayerNorm)
class LayerNormKind(NormKind[nn.LayerNorm]):
    """Layers that normalise each image, or each of its tokens, over the last axes."""

    def normalised(self, layer: nn.LayerNorm, images: Tensor) -> Tensor:
        """See `NormKind.normalised`."""
        return F.layer_norm(images, layer.normalized_shape, eps=layer.eps)

    def scaled(self, layer: nn.LayerNorm, images: Tensor, weights: Tensor, shifts: Tensor) -> Tensor:
        """See `NormKind.scaled`."""
        by_victim = images.reshape(len(weights), -1, *layer.normalized_shape)
        return torch.addcmul(shifts.unsqueeze(1), by_victim, weights.unsqueeze(1)).reshape(images.shape)

    def sums(self, layer: nn.LayerNorm, values: Tensor, victims: int, restarts: int) -> Tensor:
        """See `NormKind.sums`."""
        features = torch.Size(layer.normalized_shape).numel()
        return values.reshape(victims, restarts, -1, features).sum(2)


@register_layer("torchvision.models.convnext.LayerNorm2d", "timm.layers.norm.LayerNorm2d")
class ChannelsNormKind(LayerNormKind):
    """Layers that normalise every place of an image over its channels."""

    def normalised(self, layer: nn.LayerNorm, images: Tensor) -> Tensor:
        """See `NormKind.normalised`."""
        return super().normalised(layer, images.movedim(1, -1)).movedim(-1, 1)

    def scaled(self, layer: nn.LayerNorm, images: Tensor, weights: Tensor, shifts: Tensor) -> Tensor:
        """See `NormKind.scaled`."""
        return affine(images, weights, shifts)

    def sums(self, layer: nn.LayerNorm, values: Tensor, victims: int, restarts: int) -> Tensor:
        """See `NormKind.sums`."""
        return super().sums(layer, values.movedim(1, -1), victims, restarts)


@register_layer(nn.GroupNorm)
class GroupNormKind(NormKind[nn.GroupNorm]):
    """Layers that normalise groups of an image's channels."""

    def normalised(self, layer: nn.GroupNorm, images: Tensor) -> Tensor:
        """See `NormKind.normalised`."""
        return F.group_norm(images, layer.num_groups, eps=layer.eps)


@register_layer(BatchStatisticsNorm)
class BatchStatisticsKind(NormKind[BatchStatisticsNorm]):
    """Layers that normalise by the images of one candidate."""

    def normalised(self, layer: BatchStatisticsNorm, images: Tensor) -> Tensor:
        """See `NormKind.normalised`."""
        return layer.normalised(images)


@register_layer(nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm1d, nn.InstanceNorm2d)
class RunningNormKind(NormKind[RunningNorm]):
    """Layers that normalise by running statistics in evaluation mode; without them, by those of each image."""

    def normalised(self, layer: RunningNorm, images: Tensor) -> Tensor:
        """Instance norm; batch norm without running statistics is refused before (`mixes_images`)."""
        return F.instance_norm(images, eps=layer.eps)

    def buffers(self, layer: RunningNorm) -> tuple[str, ...]:
        """The running statistics, where it runs on them."""
        return ("running_mean", "running_var") if runs_on_statistics(layer) else ()

    def is_cheaper(self, layer: RunningNorm) -> bool:
        """On running statistics, where scale and shift are one operation."""
        return runs_on_statistics(layer)

    def forward(self, layer: RunningNorm, tensors: Mapping[str, Tensor | None], *, together: bool) -> Forward:
        """Scale and shift; see `LayerKind.forward`."""
        statistics = _statistics(tensors)
        if statistics is None:
            return super().forward(layer, tensors, together=together)
        mean, variance = statistics
        scale = (variance + layer.eps).rsqrt()
        weights, biases = tensors["weight"], tensors["bias"]
        if weights is not None:
            scale = scale * weights
        shift = -mean * scale
        if biases is not None:
            shift = shift + biases
        return lambda images: affine(images, scale, shift)

    def products(self, layer: RunningNorm, observed: ObservedLayer) -> LayerProducts:
        """Products for scale and shift, which are vectors."""
        statistics = _statistics(observed.buffers)
        if statistics is None:
            return super().products(layer, observed)
        return RunningNormProducts(statistics, layer.eps, observed.gradients)


def _statistics(tensors: Mapping[str, Tensor | None]) -> Statistics | None:
    """Mean and variance with as many victims each; None for a layer that does not run on them."""
    mean, variance = tensors.get("running_mean"), tensors.get("running_var")
    if mean is None or variance is None:
        return None
    victims = max(len(mean), len(variance))
    return mean.expand(victims, -1), variance.expand(victims, -1)


class ChannelSums(torch.autograd.Function):
    """``ChannelSums.apply(images, deltas)``: ``sum deltas * images`` and ``sum deltas`` over the places, (n, channels).

    Autograd would go over the memory of both nine times instead of five. First derivatives alone, as in
    `attacker.gradients.ghost.convolution_explicit`.
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
        normalised: Maps the layer's input to the one without mean and with unit variance.
        sums: Sums values, (images, ...), over each candidate's images and their places.
        gradients: Observed gradients of the scale ("weight") and of the shift ("bias"), one for each victim; those that
            count.
    """

    def __init__(
        self,
        normalised: Callable[[Tensor], Tensor],
        sums: Callable[[Tensor, int, int], Tensor],
        gradients: Mapping[str, Sequence[Tensor]],
    ) -> None:
        self._normalised, self._sums = normalised, sums
        self._counted = [name for name in ("weight", "bias") if gradients.get(name)]
        self.vectors = tuple(
            torch.stack([gradient.flatten() for gradient in gradients[name]]) for name in self._counted
        )

    def __call__(self, received: Tensor, delta: Tensor, victims: int, restarts: int) -> LayerShare:
        """Scale and shift; see `LayerProducts.__call__`."""
        gradients = [delta * self._normalised(received) if name == "weight" else delta for name in self._counted]
        return LayerShare([self._sums(gradient, victims, restarts) for gradient in gradients], None)


class RunningNormProducts(LayerProducts):
    """The share of a layer that normalises by running statistics: its normalised input is never formed.

    Args:
        statistics: The running statistics.
        eps: What the layer adds to the variance.
        gradients: As for `NormProducts`.
    """

    def __init__(self, statistics: Statistics, eps: float, gradients: Mapping[str, Sequence[Tensor]]) -> None:
        self._statistics, self._eps = statistics, eps
        self._counted = [name for name in ("weight", "bias") if gradients.get(name)]
        self.vectors = tuple(
            torch.stack([gradient.flatten() for gradient in gradients[name]]) for name in self._counted
        )

    def __call__(self, received: Tensor, delta: Tensor, victims: int, restarts: int) -> LayerShare:
        """Scale and shift; see `LayerProducts.__call__`."""
        if delta.dim() == 2:
            return LayerShare(self._of_features(received, delta, victims, restarts), None)
        with_images, alone = (
            sums.reshape(victims, restarts, -1, sums.shape[1]).sum(2) for sums in ChannelSums.apply(received, delta)
        )
        mean, variance = (statistic.unsqueeze(1) for statistic in self._statistics)
        scales = (with_images - mean * alone) * (variance + self._eps).rsqrt()
        shares = {"weight": scales, "bias": alone}
        return LayerShare([shares[name] for name in self._counted], None)

    def _of_features(self, received: Tensor, delta: Tensor, victims: int, restarts: int) -> list[Tensor]:
        """The same for (images, features), which have no places to sum over."""
        mean, variance = self._statistics
        scale = (variance + self._eps).rsqrt()
        gradients = [delta * affine(received, scale, -mean * scale) if name == "weight" else delta
                 for name in self._counted]  # fmt: skip
        return [gradient.reshape(victims, restarts, -1, gradient.shape[1]).sum(2) for gradient in gradients]

    def keep(self, victims: Sequence[int]) -> Self:
        """Some of the victims; see `LayerProducts.keep`."""
        kept, chosen = super().keep(victims), list(victims)
        if len(self._statistics[0]) > 1:
            kept._statistics = self._statistics[0][chosen], self._statistics[1][chosen]
        return kept
