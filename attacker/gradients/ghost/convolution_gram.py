"""Products of convolutions with few places and many channels, whose weight gradients are never formed.

The squared norm comes from Gram matrices over the places (Goodfellow 2015, arXiv 1510.01799, for dense layers), the
inner product from a convolution with the observed gradient as its kernel: ``<D^T A, G> = sum(D * conv(A, G))``.

As in `attacker.gradients.ghost.convolution_explicit`, first derivatives alone are given, in closed form.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from attacker.gradients.ghost.convolution_explicit import Geometry
from attacker.optim.double_precision import precise

Kernels = tuple[Tensor, ...]
"""One observed gradient as it is, (out, in / groups, h, w), or as factors: a kernel of few outputs, then a 1x1 one."""


class Inner(torch.autograd.Function):
    """``Inner.apply(received, delta, kernels, geometry, restarts)``: <g, G>, (v, r) in float64, for v `Kernels`."""

    @staticmethod
    def forward(
        ctx: Any, received: Tensor, delta: Tensor, kernels: tuple[Kernels, ...], geometry: Geometry, restarts: int
    ) -> Tensor:
        """See the class."""
        outputs = []
        for images, (first, *second) in zip(received.chunk(len(kernels)), kernels, strict=True):
            output = geometry.forward(images, first)
            outputs.append(F.conv2d(output, second[0], groups=geometry.groups) if second else output)
        output = torch.cat(outputs)
        ctx.save_for_backward(received, delta, output)
        ctx.kernels, ctx.geometry = kernels, geometry
        return (precise(delta) * precise(output)).reshape(len(kernels), restarts, -1).sum(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, inner: Tensor) -> tuple[Tensor | None, ...]:
        """Scaled: the output that was saved, and the adjoint convolution of delta."""
        received, delta, output = ctx.saved_tensors
        scale = inner.to(delta.dtype).reshape(-1, 1).repeat_interleave(len(delta) // inner.numel()).view(-1, 1, 1, 1)
        to_received = None
        if ctx.needs_input_grad[0]:
            victims = len(ctx.kernels)
            scaled = (delta * scale).chunk(victims)
            parts = []
            for deltas, images, (first, *second) in zip(scaled, received.chunk(victims), ctx.kernels, strict=True):
                if second:
                    deltas = F.conv_transpose2d(deltas, second[0], groups=ctx.geometry.groups)
                parts.append(ctx.geometry.towards_images(deltas, images, first))
            to_received = torch.cat(parts)
        return to_received, output * scale if ctx.needs_input_grad[1] else None, None, None, None


class GramSquare(torch.autograd.Function):
    """``GramSquare.apply(received, delta, kernel, geometry, count)``: |g|^2 of ``count`` candidates, in float64.

    ``kernel`` is its height and width.
    """

    @staticmethod
    def forward(
        ctx: Any, received: Tensor, delta: Tensor, kernel: tuple[int, ...], geometry: Geometry, count: int
    ) -> Tensor:
        """See the class."""
        pixels = precise(_rows(received, geometry.groups, count))
        rows = precise(_rows(delta, geometry.groups, count))
        near = _patches(pixels @ pixels.mT, received.shape[2:], delta.shape[2:], kernel, geometry)
        of_deltas = rows @ rows.mT  # (count, groups, n, n), as is `near`
        ctx.save_for_backward(received, delta, near, of_deltas)
        ctx.kernel, ctx.geometry = kernel, geometry
        return (near * of_deltas).sum((1, 2, 3))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, square: Tensor) -> tuple[Tensor | None, ...]:
        """Gram matrices are symmetric: twice the other's Gram matrix times the rows, in the dtype of the images."""
        received, delta, near, of_deltas = ctx.saved_tensors
        count, groups = near.shape[:2]
        scale = 2 * square.reshape(-1, 1, 1, 1)
        near, of_deltas = (near * scale).to(delta.dtype), (of_deltas * scale).to(delta.dtype)
        to_received = to_delta = None
        if ctx.needs_input_grad[0]:
            spread = _spread(of_deltas, received.shape[2:], delta.shape[2:], ctx.kernel, ctx.geometry)
            gradient = _images(spread @ _rows(received, groups, count), received.shape[2:])
            to_received = gradient.contiguous(memory_format=torch.channels_last)
        if ctx.needs_input_grad[1]:
            gradient = _images(near @ _rows(delta, groups, count), delta.shape[2:])
            to_delta = gradient.contiguous(memory_format=torch.channels_last)
        return to_received, to_delta, None, None, None


def _rows(images: Tensor, groups: int, count: int) -> Tensor:
    """(count * batch, channels, h, w) to (count, groups, batch * h * w, channels / groups)."""
    split = images.reshape(count, -1, groups, images.shape[1] // groups, *images.shape[2:])
    return split.permute(0, 2, 1, 4, 5, 3).flatten(2, 4)


def _images(rows: Tensor, size: torch.Size) -> Tensor:
    """Back from `_rows`."""
    split = rows.reshape(*rows.shape[:2], -1, *size, rows.shape[3])  # (count, groups, batch, h, w, channels)
    return split.permute(0, 2, 1, 5, 3, 4).flatten(2, 3).flatten(0, 1)


def _patches(gram: Tensor, size: torch.Size, places: torch.Size, kernel: tuple[int, ...], geometry: Geometry) -> Tensor:
    """Inner products of patches from those of pixels: a sum over the places of the kernel.

    Pixels of the padding are zero, so that only their products are written, not computed.
    """
    batch = gram.shape[2] // size.numel()
    height, width = geometry.padding
    sides = [width, width, height, height]
    pixels = F.pad(gram.reshape(*gram.shape[:2], batch, *size, batch, *size), [*sides, 0, 0, *sides])
    first, *others = (pixels[index] for index in _offsets(places, kernel, geometry))
    total = first.clone(memory_format=torch.contiguous_format)
    for other in others:
        total += other
    return total.flatten(2, 4).flatten(3, 5)


def _spread(
    weights: Tensor, size: torch.Size, places: torch.Size, kernel: tuple[int, ...], geometry: Geometry
) -> Tensor:
    """The adjoint of `_patches`."""
    batch = weights.shape[2] // places.numel()
    split = weights.reshape(*weights.shape[:2], batch, *places, batch, *places)
    height, width = geometry.padding
    whole = (batch, size[0] + 2 * height, size[1] + 2 * width)
    pixels = weights.new_zeros(*weights.shape[:2], *whole, *whole)
    for index in _offsets(places, kernel, geometry):
        pixels[index] += split
    down, across = slice(height, height + size[0]), slice(width, width + size[1])
    return pixels[..., down, across, :, down, across].flatten(2, 4).flatten(3, 5)


def _offsets(places: torch.Size, kernel: tuple[int, ...], geometry: Geometry) -> Iterator[tuple[slice, ...]]:
    """For each place of the kernel the pixels that it meets, as an index of (.., .., batch, h, w, batch, h, w)."""
    every = slice(None)
    down, across = (
        [slice(k * d, k * d + (n - 1) * s + 1, s) for k in range(size)]
        for n, size, s, d in zip(places, kernel, geometry.stride, geometry.dilation, strict=True)
    )
    for y in down:
        for x in across:
            yield every, every, every, y, x, every, y, x
