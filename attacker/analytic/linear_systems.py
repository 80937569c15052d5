"""Equations for the input of one layer from one image's gradient: two linear blocks, never formed.

For a convolution ``z = W * x + b`` with weight gradient G and ``d = dloss/dz`` known, the input x obeys
``T(W) x = z - b`` (weight constraints) and ``K(d) x = G`` (gradient constraints): Zhu, Blaschko, ICLR 2021 (R-GAP);
Chen, Campbell, arXiv 2111.10178. A fully connected layer is the case of a single position.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Patches:
    """How a Conv2d or Linear layer cuts its input into the vectors that its weights multiply.

    Attributes:
        shape: (channels, height, width) of one input; (features, 1, 1) for a Linear layer.
        kernel: (height, width).
        stride: Likewise, as are padding and dilation.
        padding: (left, right, top, bottom), zeros.
        dilation: Dilation of the kernel.
        groups: Groups of channels.
        outputs: Channels that come out, of all groups.
    """

    shape: tuple[int, int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int
    outputs: int

    @classmethod
    def of(cls, layer: nn.Conv2d | nn.Linear, shape: tuple[int, ...]) -> Patches:
        """Patches of a layer whose input for one image has this shape.

        Raises:
            ValueError: If the convolution pads with something else than zeros, or the shape does not fit the layer.
        """
        if isinstance(layer, nn.Linear):
            if shape != (layer.in_features,):
                raise ValueError(
                    f"expected {layer.in_features} numbers for one image to enter the Linear layer, got shape {shape}"
                )
            return cls(
                shape=(layer.in_features, 1, 1), kernel=(1, 1), stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1),
                groups=1, outputs=layer.out_features,
            )  # fmt: skip
        if layer.padding_mode != "zeros":
            raise ValueError(f"padding_mode={layer.padding_mode!r} is not handled; only zeros are")
        if len(shape) != 3:
            raise ValueError(f"expected (channels, height, width) to enter the convolution, got {shape}")
        channels, height, width = shape
        return cls(
            shape=(channels, height, width),
            kernel=_pair(layer.kernel_size),
            stride=_pair(layer.stride),
            padding=_padding(layer),
            dilation=_pair(layer.dilation),
            groups=layer.groups,
            outputs=layer.out_channels,
        )

    @property
    def unknowns(self) -> int:
        """Numbers that enter."""
        return math.prod(self.shape)

    @property
    def per_patch(self) -> int:
        """Numbers that one output value is made of."""
        return self.shape[0] // self.groups * self.kernel[0] * self.kernel[1]

    @cached_property
    def output_size(self) -> tuple[int, int]:
        """(height, width) that comes out."""
        left, right, top, bottom = self.padding
        padded = (self.shape[1] + top + bottom, self.shape[2] + left + right)
        sides = [
            (side - dilation * (kernel - 1) - 1) // stride + 1
            for side, kernel, stride, dilation in zip(padded, self.kernel, self.stride, self.dilation, strict=True)
        ]
        return sides[0], sides[1]

    @property
    def positions(self) -> int:
        """Output values of one channel."""
        return math.prod(self.output_size)

    @property
    def weight_rows(self) -> int:
        """Weight constraints: one for each output value."""
        return self.outputs * self.positions

    @property
    def gradient_rows(self) -> int:
        """Gradient constraints: one for each entry of the kernel."""
        return self.outputs * self.per_patch

    @property
    def independent_weight_rows(self) -> int:
        """The most weight constraints that can be independent of each other."""
        return self.groups * min(self.outputs // self.groups, self.per_patch) * self.positions

    @property
    def independent_rows(self) -> int:
        """The most rows of both blocks that can be independent of each other.

        Patches C, (per_patch, positions) in each group, are seen as ``W C`` and ``C d'``: with ranks r and s of W and d
        that leaves (per_patch - r) (positions - s) numbers open. Of few outputs k, all k^2 relations
        ``W (C d') = (W C) d'`` are dependencies; the published counts leave them out.
        """
        per_group = self.outputs // self.groups
        told = min(per_group, self.per_patch)
        steep = min(per_group, self.positions)
        return self.groups * (told * self.positions + steep * self.per_patch - told * steep)

    @property
    def dependent_rows(self) -> int:
        """Rows of both blocks that follow from others whatever the numbers are."""
        return self.weight_rows + self.gradient_rows - self.independent_rows

    @cached_property
    def untouched(self) -> int:
        """Input values that no patch contains, such as the last rows that a stride does not reach."""
        ones = torch.ones(1, self.groups, self.per_patch, self.positions)
        return int((self.put(ones) == 0).sum())

    @property
    def rank_bound(self) -> int:
        """The most that the rank of both blocks together can be; nearly always reached (unless d is degenerate)."""
        return min(self.unknowns - self.untouched, self.independent_rows)

    def take(self, x: Tensor) -> Tensor:
        """Inputs (v, channels, height, width) to patches (v, groups, per_patch, positions)."""
        if self.kernel == (1, 1) and self.shape[1:] == (1, 1):
            return x.reshape(len(x), self.groups, self.per_patch, 1)
        columns = F.unfold(F.pad(x, self.padding), self.kernel, self.dilation, 0, self.stride)
        return columns.reshape(len(x), self.groups, self.per_patch, -1)

    def put(self, patches: Tensor) -> Tensor:
        """The transpose of `take`: every patch added where it came from, (v, channels, height, width)."""
        if self.kernel == (1, 1) and self.shape[1:] == (1, 1):
            return patches.reshape(len(patches), *self.shape)
        left, right, top, bottom = self.padding
        size = (self.shape[1] + top + bottom, self.shape[2] + left + right)
        columns = patches.reshape(len(patches), self.groups * self.per_patch, -1)
        padded = F.fold(columns, size, self.kernel, self.dilation, 0, self.stride)
        return F.pad(padded, (-left, -right, -top, -bottom))


@dataclass(frozen=True, kw_only=True)
class LayerSystem:
    """Both blocks for v victims at once: ``x -> (T(W) x, K(d) x)`` and its transpose.

    Attributes:
        patches: Geometry of the layer.
        weight: (v or 1, outputs, ...) in the shape of the layer's weight.
        delta: (v, outputs, height, width), gradients with respect to the layer's output before its activation.
        behind: A linear map that follows the layer, such as average pooling, for (v, outputs, height, width); the
            weight constraints are about what it returns. None for none.
        behind_transposed: Its transpose.
    """

    patches: Patches
    weight: Tensor
    delta: Tensor
    behind: Map | None = None
    behind_transposed: Map | None = None
    _kernels: Tensor = field(init=False, repr=False)
    _deltas: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        geometry = self.patches
        per_group = geometry.outputs // geometry.groups
        kernels = self.weight.reshape(-1, geometry.groups, per_group, geometry.per_patch)
        deltas = self.delta.reshape(-1, geometry.groups, per_group, geometry.positions)
        object.__setattr__(self, "_kernels", kernels)
        object.__setattr__(self, "_deltas", deltas)

    def apply(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both blocks at inputs (v, channels, height, width).

        Returns:
            What the layer makes of them without its bias, (v, outputs, height, width), after ``behind``; and the weight
            gradient that they would give, (v, gradient_rows).
        """
        columns = self.patches.take(x)
        z = (self._kernels @ columns).reshape(len(x), self.patches.outputs, *self.patches.output_size)
        gradient = self._deltas @ columns.transpose(2, 3)
        return (z if self.behind is None else self.behind(z)), gradient.flatten(1)

    def transposed(self, z: Tensor, gradient: Tensor) -> Tensor:
        """``T(W)' z + K(d)' gradient``, (v, channels, height, width)."""
        columns = self._pulled_back(z)
        rows = gradient.reshape(len(gradient), *self._kernels.shape[1:])
        return self.patches.put(columns + rows.transpose(2, 3) @ self._deltas)

    def input_gradient(self) -> Tensor:
        """``T(W)' d``: the gradient of the loss with respect to the layer's input, (v, channels, height, width)."""
        return self.patches.put(self._kernels.transpose(2, 3) @ self._deltas)

    def dense(self) -> Tensor:
        """The matrix (v, weight rows + gradient rows, unknowns), for spectra of small layers."""
        unit = torch.eye(self.patches.unknowns, dtype=self.delta.dtype, device=self.delta.device)
        columns = []
        for vector in unit:
            z, gradient = self.apply(vector.reshape(1, *self.patches.shape).expand(len(self.delta), -1, -1, -1))
            columns.append(torch.cat([z.flatten(1), gradient], dim=1))
        return torch.stack(columns, dim=2)

    def _pulled_back(self, z: Tensor) -> Tensor:
        z = z if self.behind_transposed is None else self.behind_transposed(z)
        per_group = self.patches.outputs // self.patches.groups
        parts = z.reshape(len(z), self.patches.groups, per_group, self.patches.positions)
        return self._kernels.transpose(2, 3) @ parts


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    first, second = values
    return first, second


def _padding(layer: nn.Conv2d) -> tuple[int, int, int, int]:
    """(left, right, top, bottom); "same" puts the odd one behind, as torch does."""
    if layer.padding == "valid":
        return 0, 0, 0, 0
    if layer.padding == "same":
        total = [dilation * (kernel - 1) for dilation, kernel in zip(layer.dilation, layer.kernel_size, strict=True)]
        (top, left), (bottom, right) = ([part // 2 for part in total], [part - part // 2 for part in total])
        return left, right, top, bottom
    assert not isinstance(layer.padding, str)
    vertical, horizontal = _pair(layer.padding)
    return horizontal, horizontal, vertical, vertical
