"""Convolution geometry, and products from weight gradients that are formed, one for each candidate.

Distances need first derivatives with respect to the candidates only. The functions here give those in closed form. No
second derivatives of distances: ``backward`` refuses them, but ``torch.autograd.grad`` towards chosen tensors passes
over what `once_differentiable` marks, and its result would lack these terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from attacker.gradients.base import squares
from attacker.optim.double_precision import precise

# Multiplications up to which one image goes through a convolution faster without oneDNN, whose calls cost 30 to 100
# microseconds here whatever they compute; torch makes the same choice by itself for kernels of 3x3 and less.
_TINY = 1 << 18


class Geometry(NamedTuple):
    """What a convolution does besides its kernel. Images are padded before where ``padding`` cannot say how."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @classmethod
    def of(cls, layer: nn.Conv2d) -> Geometry:
        """What a layer does with images that were padded before where `pads_first` says so."""
        padding = (0, 0) if pads_first(layer) or isinstance(layer.padding, str) else _pair(layer.padding)
        return cls(_pair(layer.stride), padding, _pair(layer.dilation), layer.groups)

    def forward(self, images: Tensor, kernels: Tensor, sets: int = 1, biases: Tensor | None = None) -> Tensor:
        """Convolve; with ``sets`` of kernels side by side, each sees its share of the channels."""
        if sets == 1 and self._is_tiny(images, kernels):
            output: Tensor = torch.ops.aten._slow_conv2d_forward(
                images, kernels, kernels.shape[2:], biases, self.stride, self.padding
            )
            return output
        return F.conv2d(images, kernels, biases, self.stride, self.padding, self.dilation, sets * self.groups)

    def towards_images(self, deltas: Tensor, images: Tensor, kernels: Tensor, sets: int = 1) -> Tensor:
        """Gradient of `forward` with respect to the images, for output gradients ``deltas``."""
        gradient: Tensor = self._backward(deltas, images, kernels, sets, [True, False, False])[0]
        return gradient

    def towards_kernels(self, deltas: Tensor, images: Tensor, kernels: Tensor, sets: int = 1) -> Tensor:
        """Gradient of `forward` with respect to the kernels; of ``kernels`` the shape counts."""
        gradient: Tensor = self._backward(deltas, images, kernels, sets, [False, True, False])[1]
        return gradient

    def _backward(self, deltas: Tensor, images: Tensor, kernels: Tensor, sets: int, wanted: list[bool]) -> Any:
        if sets == 1 and self._is_tiny(images, kernels):
            if images.is_contiguous(memory_format=torch.channels_last):  # it wants all in one order, and says so late
                kernels = kernels.contiguous(memory_format=torch.channels_last)
            return torch.ops.aten._slow_conv2d_backward.output_mask(
                deltas, images, kernels, kernels.shape[2:], self.stride, self.padding, wanted
            )
        return torch.ops.aten.convolution_backward(
            deltas, images, kernels, None, self.stride, self.padding, self.dilation, False, [0, 0],
            sets * self.groups, wanted,
        )  # fmt: skip

    def _is_tiny(self, images: Tensor, kernels: Tensor) -> bool:
        plain = len(images) == 1 and self.groups == 1 and self.dilation == (1, 1)
        if not (plain and images.device.type == "cpu" and images.dtype == torch.float32):
            return False
        places = 1
        for length, kernel, stride, padding in zip(
            images.shape[2:], kernels.shape[2:], self.stride, self.padding, strict=True
        ):
            places *= (length + 2 * padding - kernel) // stride + 1
        return places * kernels.numel() <= _TINY


def pads_first(layer: nn.Conv2d) -> bool:
    """Whether the layer pads in a way that `Geometry` cannot say, so that its images must be padded before."""
    return layer.padding_mode != "zeros" or isinstance(layer.padding, str)


def _pair(values: Sequence[int]) -> tuple[int, int]:
    first, second = values
    return first, second


class Convolve(torch.autograd.Function):
    """A convolution whose second derivative leaves out what nobody asked for.

    torch differentiates a convolution's backward pass towards its weights even where they need no gradient, a sixth of
    all the work here. ``Convolve.apply(images, kernels, biases, geometry, together)`` takes the flat batch, kernels
    (v, out, in / groups, height, width) and biases (v, out) or None; v is 1 where victims share them. ``together``
    makes one call with a group of channels for each victim, otherwise there is one call for each.
    """

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, kernels: Tensor, biases: Tensor | None, geometry: Geometry, together: bool
    ) -> Tensor:
        """See the class."""
        ctx.save_for_backward(images, kernels)
        ctx.geometry, ctx.together = geometry, together
        return _convolve(images, kernels, biases, geometry, together)

    @staticmethod
    def backward(ctx: Any, deltas: Tensor) -> tuple[Tensor | None, ...]:
        """Towards the images."""
        images, kernels = ctx.saved_tensors
        return _Adjoint.apply(deltas, images.detach(), kernels, ctx.geometry, ctx.together), None, None, None, None


class _Adjoint(torch.autograd.Function):
    """The adjoint of `Convolve`."""

    @staticmethod
    def forward(
        ctx: Any, deltas: Tensor, images: Tensor, kernels: Tensor, geometry: Geometry, together: bool
    ) -> Tensor:
        ctx.save_for_backward(kernels)
        ctx.geometry, ctx.together = geometry, together
        victims = len(kernels)
        if victims == 1:
            return geometry.towards_images(deltas, images, kernels[0])
        if not together:
            every = zip(deltas.chunk(victims), images.chunk(victims), kernels, strict=True)
            return torch.cat([geometry.towards_images(delta, like, kernel) for delta, like, kernel in every])
        deltas, images = side_by_side(deltas, victims), side_by_side(images, victims)
        return in_a_row(geometry.towards_images(deltas, images, kernels.flatten(0, 1), victims), victims)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (kernels,) = ctx.saved_tensors
        return _convolve(gradient, kernels, None, ctx.geometry, ctx.together), None, None, None, None


def _convolve(images: Tensor, kernels: Tensor, biases: Tensor | None, geometry: Geometry, together: bool) -> Tensor:
    victims = len(kernels)
    if victims == 1:
        return geometry.forward(images, kernels[0], 1, None if biases is None else biases[0])
    if not together:
        each = [None] * victims if biases is None else list(biases)
        every = zip(images.chunk(victims), kernels, each, strict=True)
        return torch.cat([geometry.forward(chunk, kernel, 1, bias) for chunk, kernel, bias in every])
    flat = None if biases is None else biases.flatten()
    return in_a_row(geometry.forward(side_by_side(images, victims), kernels.flatten(0, 1), victims, flat), victims)


class Formed(torch.autograd.Function):
    """<g, G> and |g|^2 for the weight gradients g of all candidates, each by a library call of its own.

    ``Formed.apply(received, delta, target, geometry, restarts, kept)`` takes layer inputs and output gradients of the
    flat batch, observed gradients G (v, out, in / groups, height, width), and returns (v, r) twice, in float64. With
    ``kept``, g is zero wherever G is.
    """

    @staticmethod
    def forward(
        ctx: Any,
        received: Tensor,
        delta: Tensor,
        target: Tensor,
        geometry: Geometry,
        restarts: int,
        kept: bool,
    ) -> tuple[Tensor, Tensor]:
        """See the class."""
        count = len(target) * restarts
        like = torch.empty_like(target[0])
        gradients, inner, square = [], [], []
        for k, (images, deltas) in enumerate(zip(_pieces(received, count), _pieces(delta, count), strict=True)):
            observed = target[k // restarts]
            if k % restarts == 0:  # not held in float64: of many victims that would be most of the memory
                exact = precise(_channels_last(observed))
            gradient = geometry.towards_kernels(deltas, images, like)
            if kept:
                gradient = torch.where(observed == 0, 0, gradient)
            flat = precise(_channels_last(gradient))
            inner.append(torch.dot(flat, exact))
            square.append(torch.dot(flat, flat))
            gradients.append(gradient)
        ctx.save_for_backward(received, delta, target, *gradients)
        ctx.geometry = geometry
        shape = len(target), restarts
        return torch.stack(inner).reshape(shape), torch.stack(square).reshape(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, inner: Tensor, square: Tensor) -> tuple[Tensor | None, ...]:
        """With ``u = inner G + 2 square g`` as kernels: towards delta a convolution, towards received its adjoint."""
        received, delta, target, *gradients = ctx.saved_tensors
        restarts, count = inner.shape[1], inner.numel()
        # As tensors: numbers would make a GPU wait for every layer.
        along, scale = (value.to(target.dtype).flatten().unbind() for value in (inner, 2 * square))
        to_received, to_delta = [], []
        for k, (images, deltas) in enumerate(zip(_pieces(received, count), _pieces(delta, count), strict=True)):
            kernels = torch.addcmul(gradients[k] * scale[k], target[k // restarts], along[k])
            if ctx.needs_input_grad[0]:
                to_received.append(ctx.geometry.towards_images(deltas, images, kernels))
            if ctx.needs_input_grad[1]:
                to_delta.append(ctx.geometry.forward(images, kernels))
        return (*(_together(pieces) for pieces in (to_received, to_delta)), None, None, None, None)


def _pieces(images: Tensor, count: int) -> Sequence[Tensor]:
    return images.chunk(count) if count > 1 else (images,)


def _together(pieces: Sequence[Tensor]) -> Tensor | None:
    if len(pieces) < 2:
        return pieces[0] if pieces else None
    return torch.cat(list(pieces))


def _channels_last(kernels: Tensor) -> Tensor:
    """All numbers of (out, in, height, width) in one row, in the order in which memory holds channels last."""
    return kernels.permute(0, 2, 3, 1).flatten()


class FormedTogether(torch.autograd.Function):
    """As `Formed`, in one library call with a group of channels for each candidate: faster for few channels."""

    @staticmethod
    def forward(
        ctx: Any,
        received: Tensor,
        delta: Tensor,
        target: Tensor,
        geometry: Geometry,
        restarts: int,
        kept: bool,
    ) -> tuple[Tensor, Tensor]:
        """See `Formed`."""
        victims, count = len(target), len(target) * restarts
        images, deltas = side_by_side(received, count), side_by_side(delta, count)
        like = target.new_empty(count * target.shape[1], *target.shape[2:])
        gradients = geometry.towards_kernels(deltas, images, like, count)
        if kept:
            by_victim = gradients.reshape(victims, restarts, *target.shape[1:])
            gradients = torch.where(target.unsqueeze(1) == 0, 0, by_victim).reshape(gradients.shape)
        ctx.save_for_backward(images, deltas, target, gradients)
        ctx.geometry = geometry
        flat = precise(gradients).reshape(victims, restarts, -1)
        return (flat @ precise(target.flatten(1)).unsqueeze(2)).squeeze(2), squares(flat)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, inner: Tensor, square: Tensor) -> tuple[Tensor | None, ...]:
        """See `Formed.backward`."""
        images, deltas, target, gradients = ctx.saved_tensors
        count = inner.numel()
        along, scale = (value.to(target.dtype).reshape(*inner.shape, 1) for value in (inner, 2 * square))
        whole = torch.addcmul(gradients.reshape(*inner.shape, -1) * scale, target.flatten(1).unsqueeze(1), along)
        kernels = whole.reshape(gradients.shape)
        to_received = to_delta = None
        if ctx.needs_input_grad[0]:
            to_received = in_a_row(ctx.geometry.towards_images(deltas, images, kernels, count), count)
        if ctx.needs_input_grad[1]:
            to_delta = in_a_row(ctx.geometry.forward(images, kernels, count), count)
        return to_received, to_delta, None, None, None, None


def side_by_side(images: Tensor, count: int) -> Tensor:
    """(count * batch, channels, ...) to (batch, count * channels, ...), as groups of channels."""
    return images.reshape(count, -1, *images.shape[1:]).transpose(0, 1).flatten(1, 2)


def in_a_row(images: Tensor, count: int) -> Tensor:
    """Back from `side_by_side`."""
    return images.reshape(len(images), count, -1, *images.shape[2:]).transpose(0, 1).flatten(0, 1)
