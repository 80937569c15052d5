"""Exact identities for gradients of linear maps, from what a layer receives (a) and its output gradients (d).

The weight gradient of one candidate is ``D^T A`` with a row for each image (and place, for convolutions and sequences).
Inner products follow from the factors without forming it: ``<D^T A, G> = sum((D G) * A)`` and
``|D^T A|^2 = sum((D D^T) * (A A^T))`` (Goodfellow 2015, arXiv 1510.01799, for norms).

Letters: v victims, g groups of a convolution, r restarts, n rows of one candidate, i and o features in and out of a
group, k rank of an observed gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacker.engine.products import precise

PlainLayer = nn.Linear | nn.Conv2d

ROUNDING = 64
"""An observed gradient is taken as low-rank when what the factors miss is below this multiple of machine precision."""


@dataclass(frozen=True)
class LayerRows:
    """One layer's share of every candidate: rows of layer inputs and of output gradients.

    Attributes:
        received: (v, g, r, n, i).
        deltas: (v, g, r, n, o).
    """

    received: Tensor
    deltas: Tensor

    def forms_gram(self) -> bool:
        """Whether Gram matrices over the rows cost less than the weight gradient itself."""
        n, i = self.received.shape[-2:]
        o = self.deltas.shape[-1]
        return n * (i + o) < i * o

    def weight_products(self, target: WeightTarget) -> tuple[Tensor, Tensor]:
        """<D^T A, G> and |D^T A|^2, (v, r) each."""
        if not self.forms_gram():
            gradient = precise(torch.einsum("vgrno,vgrni->vgroi", self.deltas, self.received))
            inner = torch.einsum("vgroi,vgoi->vr", gradient, precise(target.dense()))
            return inner, gradient.square().sum((1, 3, 4))
        a, d = precise(self.received), precise(self.deltas)
        gram = (d @ d.mT) * (a @ a.mT)  # (v, g, r, n, n)
        return target.inner(self.received, self.deltas), gram.sum((1, 3, 4))

    def bias_products(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """<sum of D, G> and |sum of D|^2, (v, r) each, for observed bias gradients (v, g, o)."""
        gradient = precise(self.deltas.sum(3))  # (v, g, r, o)
        return torch.einsum("vgro,vgo->vr", gradient, precise(target)), gradient.square().sum((1, 3))


class WeightTarget:
    """Observed weight gradients of one layer, factored exactly where their rank is low.

    Args:
        gradients: (g, o, i), one for each victim.
        rows: Rows n that a candidate has in this layer: an honest observed gradient has no higher rank.
    """

    def __init__(self, gradients: Sequence[Tensor], rows: int) -> None:
        out_features, in_features = gradients[0].shape[-2:]
        pays = 2 * rows * (in_features + out_features) < in_features * out_features
        # One victim after another: the float64 copies of all of them together would fill the memory.
        pairs = [factor(one, rows) if pays else None for one in gradients]
        found = [pair for pair in pairs if pair is not None]
        self._factors: tuple[Tensor, Tensor] | None = None
        self._dense: Tensor | None = None
        if len(found) == len(pairs):
            self._factors = torch.stack([left for left, _ in found]), torch.stack([right for _, right in found])
        else:
            self._dense = torch.stack(list(gradients))

    @property
    def factored(self) -> bool:
        """Whether the gradients are kept as factors."""
        return self._factors is not None

    def keep(self, victims: Sequence[int]) -> WeightTarget:
        """The gradients of some of the victims, in the given order."""
        kept, chosen = copy(self), list(victims)
        if self._factors is not None:
            left, right = self._factors
            kept._factors = left[chosen], right[chosen]
        if self._dense is not None:
            kept._dense = self._dense[chosen]
        return kept

    def dense(self) -> Tensor:
        """The gradients, (v, g, o, i)."""
        if self._dense is not None:
            return self._dense
        assert self._factors is not None
        left, right = self._factors
        return left @ right.mT

    def inner(self, received: Tensor, deltas: Tensor) -> Tensor:
        """sum((D G) * A) for rows A (v, g, r, n, i) and D (v, g, r, n, o): (v, r)."""
        # Restarts join the rows, so that one matrix product serves them all and G is not repeated for each.
        a, d = received.flatten(2, 3), deltas.flatten(2, 3)  # (v, g, r*n, i), (v, g, r*n, o)
        if self._factors is not None:
            left, right = self._factors  # (v, g, o, k), (v, g, i, k)
            products = (precise(d) @ left) * (precise(a) @ right)
        else:
            assert self._dense is not None
            products = precise(d @ self._dense) * precise(a)
        return products.reshape(*deltas.shape[:4], -1).sum((1, 3, 4))


def factor(gradients: Tensor, rank: int) -> tuple[Tensor, Tensor] | None:
    """Left (g, o, rank) and right (g, i, rank), whose product ``left @ right^T`` is ``gradients`` (g, o, i), or None.

    Subspace iteration (Halko, Martinsson, Tropp, SIAM Review 2011, algorithm 4.4 with one iteration) in float64: exact
    with probability one when the rank is at most ``rank``. None when more than rounding remains, for example because
    noise was added.
    """
    whole = precise(gradients)
    generator = torch.Generator(whole.device).manual_seed(0)
    probe = torch.randn(whole.shape[-2], rank, generator=generator, dtype=whole.dtype, device=whole.device)
    right, _ = torch.linalg.qr(whole.mT @ probe)  # (g, i, rank), orthonormal
    # A probe nearly orthogonal to the gradient magnifies its rounding; the iteration takes that back.
    right, _ = torch.linalg.qr(whole.mT @ (whole @ right))
    left = whole @ right
    missed = torch.linalg.matrix_norm(whole - left @ right.mT)
    allowed = ROUNDING * torch.finfo(gradients.dtype).eps * torch.linalg.matrix_norm(whole)
    return (left, right) if bool((missed <= allowed).all()) else None


def layer_rows(layer: PlainLayer, received: Tensor, deltas: Tensor, victims: int, restarts: int) -> LayerRows:
    """Sort what one pass over the flat batch saw in a layer by victim, group and restart.

    Args:
        layer: The layer.
        received: Its input, (victims * restarts * batch, ...).
        deltas: Gradient of the loss with respect to its output, (victims * restarts * batch, ...).
        victims: Number of victims.
        restarts: Number of restarts.

    Returns:
        The rows; a Linear layer has one group.
    """
    if isinstance(layer, nn.Linear):
        a = received.reshape(victims, 1, restarts, -1, received.shape[-1])
        return LayerRows(a, deltas.reshape(victims, 1, restarts, -1, deltas.shape[-1]))
    columns = F.unfold(
        padded(layer, received), layer.kernel_size, dilation=layer.dilation, stride=layer.stride
    )  # (images, channels * kernel, places)
    return LayerRows(
        _by_group(columns, layer.groups, victims, restarts),
        _by_group(deltas.flatten(2), layer.groups, victims, restarts),
    )


def _by_group(columns: Tensor, groups: int, victims: int, restarts: int) -> Tensor:
    """(victims * restarts * batch, groups * features, places) to (v, g, r, batch * places, features)."""
    places = columns.shape[-1]
    split = columns.reshape(victims, restarts, -1, groups, columns.shape[1] // groups, places)
    return split.permute(0, 3, 1, 2, 5, 4).flatten(3, 4)


def padded(layer: nn.Conv2d, images: Tensor) -> Tensor:
    """``images`` as the convolution sees them, so that no padding is left to do."""
    if isinstance(layer.padding, str):  # "valid", or "same" with the odd pixel at the end, as in torch
        excess = [
            d * (k - 1) if layer.padding == "same" else 0
            for d, k in zip(layer.dilation, layer.kernel_size, strict=True)
        ]
        sides = [(e // 2, e - e // 2) for e in excess]
    else:
        sides = [(p, p) for p in layer.padding]
    (top, bottom), (left, right) = sides
    if not (top or bottom or left or right):
        return images
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(images, [left, right, top, bottom], mode=mode)


def weight_by_group(layer: PlainLayer, values: Tensor) -> Tensor:
    """One observed weight gradient as (groups, o, i); i counts channels and kernel places."""
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    return values.reshape(groups, values.shape[0] // groups, -1)
