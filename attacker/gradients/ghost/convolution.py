"""Convolutions: their forward pass with each victim's weights, and their share of the inner products.

Columns of patches ("im2col") are never made: on CPUs they cost more than the convolution itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from attacker.gradients.ghost.convolution_explicit import Convolve, Formed, FormedTogether, Geometry, pads_first
from attacker.gradients.ghost.convolution_gram import GramSquare, Inner, Kernels
from attacker.gradients.ghost.factors import WeightTarget, padded, weight_by_group
from attacker.gradients.ghost.layer_kinds import (
    Forward,
    LayerKind,
    LayerProducts,
    LayerShare,
    ObservedLayer,
    register_layer,
)

# Multiplications for one candidate from which a library call of its own is faster than its share of a joint call, and
# a layout with channels last faster than with channels first (measured with oneDNN on AVX-512).
_LARGE = 1 << 24

# Gram matrices are multiplied in float64, at about a fourth of the speed of a float32 convolution.
_GRAM_COST = 4

_FEW = 2


def one_by_one(large: bool, candidates: int) -> bool:
    """Whether convolutions serve candidates by library calls of their own and hold channels last."""
    return large or candidates <= _FEW


@register_layer(nn.Conv2d)
class ConvolutionKind(LayerKind[nn.Conv2d]):
    """Convolutions of images, by whichever way is cheapest."""

    def why_not(self, layer: nn.Conv2d, output_shape: tuple[int, ...] | None) -> str | None:
        """Single images have no axis along which candidates could be told apart."""
        del layer
        return "a convolution gets images without a batch axis" if len(output_shape or ()) != 4 else None

    def is_cheaper(self, layer: nn.Conv2d) -> bool:
        """Always; see `Convolve`."""
        del layer
        return True

    def is_large(self, layer: nn.Conv2d, inputs: Tensor, batch_size: int) -> bool:
        """See `Costs.large`."""
        return Costs.of(layer, inputs, batch_size).large

    def forward(self, layer: nn.Conv2d, tensors: Mapping[str, Tensor | None], *, together: bool) -> Forward:
        """One call with a group of channels for each victim, or one call for each; see `LayerKind.forward`."""
        geometry, pads = Geometry.of(layer), pads_first(layer)

        def convolve(images: Tensor) -> Tensor:
            whole = padded(layer, images) if pads else images
            out: Tensor = Convolve.apply(whole, tensors["weight"], tensors["bias"], geometry, together)
            return out

        return convolve

    def products(self, layer: nn.Conv2d, observed: ObservedLayer) -> LayerProducts:
        """From Gram matrices, or from weight gradients that are formed."""
        weights, biases = (observed.gradients.get(name, ()) for name in ("weight", "bias"))
        costs = Costs.of(layer, observed.inputs, observed.batch_size)
        return ConvolutionProducts(layer, weights, biases, costs, large=observed.large, kept=observed.kept)


class ConvolutionProducts(LayerProducts):
    """A convolution's share of the products.

    Args:
        layer: The convolution.
        weights: Observed weight gradients, one for each victim; none when they do not count.
        biases: Observed bias gradients, one for each victim; none when they do not count.
        costs: What the layer costs.
        large: Whether candidates are served by library calls of their own, however many they are.
        kept: Whether only weights count whose observed gradient is not zero.
    """

    def __init__(
        self,
        layer: nn.Conv2d,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        costs: Costs,
        *,
        large: bool,
        kept: bool,
    ) -> None:
        self._layer = layer
        self._geometry = Geometry.of(layer)
        self._large, self._kept = large, kept
        self.vectors = (torch.stack(list(biases)),) if biases else ()
        self._target: Tensor | None = None
        self._kernels: tuple[Kernels, ...] = ()
        if weights and costs.gram_pays and not kept:  # Gram matrices know no single weight
            self._kernels = tuple(_kernels(layer, gradient, costs.rows) for gradient in weights)
        elif weights:
            layout = torch.channels_last if self._large else torch.contiguous_format
            self._target = torch.stack([gradient.contiguous(memory_format=layout) for gradient in weights])

    def __call__(self, received: Tensor, delta: Tensor, victims: int, restarts: int) -> LayerShare:
        """Weight and bias; see `LayerProducts.__call__`."""
        products: tuple[Tensor, Tensor] | None = None
        whole = padded(self._layer, received) if pads_first(self._layer) else received
        if self._target is not None:
            form = Formed if one_by_one(self._large, victims * restarts) else FormedTogether
            products = form.apply(whole, delta, self._target, self._geometry, restarts, self._kept)
        elif self._kernels:
            inner = Inner.apply(whole, delta, self._kernels, self._geometry, restarts)
            square = GramSquare.apply(whole, delta, self._layer.kernel_size, self._geometry, victims * restarts)
            products = inner, square.reshape(victims, restarts)
        by_candidate = (victims, restarts, -1, *delta.shape[1:])
        return LayerShare([delta.reshape(by_candidate).sum((2, 4, 5)) for _ in self.vectors], products)

    def keep(self, victims: Sequence[int]) -> Self:
        """Some of the victims; see `LayerProducts.keep`."""
        kept, chosen = super().keep(victims), list(victims)
        kept._target = None if self._target is None else self._target[chosen]
        kept._kernels = tuple(self._kernels[index] for index in chosen) if self._kernels else ()
        return kept


class Costs(NamedTuple):
    """Multiplications of one candidate in one convolution.

    Attributes:
        rows: Places of all its images.
        convolution: For the convolution.
        gram: For the Gram matrices of pixels and of output gradients.
    """

    rows: int
    convolution: int
    gram: int

    @classmethod
    def of(cls, layer: nn.Conv2d, received: Tensor, batch_size: int) -> Costs:
        """Costs for ``batch_size`` images of the size of ``received``, (any, channels, height, width)."""
        size = padded(layer, received[:1].to("meta")).shape[2:]
        rows = batch_size
        for length, kernel, stride, dilation in zip(size, layer.kernel_size, layer.stride, layer.dilation, strict=True):
            rows *= (length - dilation * (kernel - 1) - 1) // stride + 1
        pixels = size.numel() if pads_first(layer) else received.shape[2:].numel()
        gram = (batch_size * pixels) ** 2 * layer.in_channels + rows**2 * layer.out_channels
        return cls(rows, rows * layer.weight.numel(), gram)

    @property
    def gram_pays(self) -> bool:
        """Whether Gram matrices cost less than forming the weight gradient."""
        return _GRAM_COST * self.gram < self.convolution

    @property
    def large(self) -> bool:
        """Whether candidates are better served one by one, with channels last."""
        return self.convolution >= _LARGE


def _kernels(layer: nn.Conv2d, gradient: Tensor, rows: int) -> Kernels:
    """One observed gradient as factors where its rank is low, else as it is."""
    factors = WeightTarget([weight_by_group(layer, gradient)], rows).factors
    if factors is None:
        return (gradient.contiguous(memory_format=torch.channels_last),)
    left, right = (value[0].to(gradient.dtype) for value in factors)  # (g, out / g, k), (g, in / g * places, k)
    first = right.mT.reshape(-1, *gradient.shape[1:])
    return first.contiguous(memory_format=torch.channels_last), left.reshape(-1, left.shape[-1], 1, 1).contiguous()
