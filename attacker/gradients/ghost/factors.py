"""Exact identities for gradients of linear maps, from what a layer receives (a) and its output gradients (d).

The weight gradient of one candidate is ``D^T A`` with a row for each image (and place, for convolutions and sequences).
Inner products follow from the factors without forming it: ``<D^T A, G> = sum((D G) * A)`` and
``|D^T A|^2 = sum((D D^T) * (A A^T))`` (Goodfellow 2015, arXiv 1510.01799, for norms).

Letters: v victims, r restarts, n rows of one candidate, i and o features in and out, k rank of an observed gradient; g
groups of a convolution, with i and o counted in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacker.gradients.base import squares
from attacker.optim.double_precision import precise

PlainLayer = nn.Linear | nn.Conv2d

ROUNDING = 64
"""An observed gradient is taken as low-rank when what the factors miss is below this multiple of machine precision."""

_BLOCK = 64


@dataclass(frozen=True)
class LayerRows:
    """One Linear layer's share of every candidate: rows of layer inputs and of output gradients.

    Attributes:
        received: (v, r, n, i).
        deltas: (v, r, n, o).
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
        victims, restarts = self.received.shape[:2]
        if not self.forms_gram():
            gradient = self.deltas.flatten(0, 1).mT @ self.received.flatten(0, 1)  # (v * r, o, i)
            return vector_products(gradient.reshape(victims, restarts, -1), target.dense().flatten(1))
        # Restarts join the rows, so that one matrix product serves them all and G is not repeated for each.
        a, d = precise(self.received.flatten(1, 2)), precise(self.deltas.flatten(1, 2))  # (v, r * n, i or o)
        inner = target.inner(a, d, restarts)
        if self.received.shape[2] == 1:
            return inner, torch.linalg.vecdot(d, d) * torch.linalg.vecdot(a, a)
        a, d = (rows.reshape(victims * restarts, -1, rows.shape[2]) for rows in (a, d))
        return inner, ((d @ d.mT) * (a @ a.mT)).sum((1, 2)).reshape(victims, restarts)


def vector_products(gradients: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """<g, G> and |g|^2, (v, r) each in float64, for gradients (v, r, numbers) and observed ones (v, numbers)."""
    each = precise(gradients)
    return (each @ precise(targets).unsqueeze(2)).squeeze(2), squares(each)


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
        pairs = [factor(gradient, rows) if pays else None for gradient in gradients]
        factored = [pair for pair in pairs if pair is not None]
        self._factors: tuple[Tensor, Tensor] | None = None
        self._dense: Tensor | None = None
        if len(factored) == len(pairs):
            self._factors = torch.stack([left for left, _ in factored]), torch.stack([right for _, right in factored])
        else:
            self._dense = torch.stack(list(gradients))

    @property
    def factors(self) -> tuple[Tensor, Tensor] | None:
        """Left (v, g, o, k) and right (v, g, i, k) factors, or None when a gradient is kept as it is."""
        return self._factors

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

    def inner(self, received: Tensor, deltas: Tensor, restarts: int) -> Tensor:
        """sum((D G) * A) for float64 rows A (v, r * n, i) and D (v, r * n, o) of a layer with one group: (v, r)."""
        if self._factors is not None:
            left, right = (value.squeeze(1) for value in self._factors)  # (v, o, k), (v, i, k)
            products = torch.linalg.vecdot(deltas @ left, received @ right)
        else:
            assert self._dense is not None
            dense = self._dense.squeeze(1)
            products = torch.linalg.vecdot(precise(deltas.to(dense.dtype) @ dense), received)
        summed: Tensor = products.reshape(len(products), restarts, -1).sum(2)
        return summed


def factor(gradients: Tensor, rank: int) -> tuple[Tensor, Tensor] | None:
    """Left (g, o, rank) and right (g, i, rank), whose product ``left @ right^T`` is ``gradients`` (g, o, i), or None.

    Subspace iteration (Halko, Martinsson, Tropp, SIAM Review 2011, algorithm 4.4 with one iteration): exact with
    probability one when the rank is at most ``rank``. None when more than rounding remains, for example because noise
    was added. Rounding in the right factor counts in second order, so that only the left one needs float64.
    """
    generator = torch.Generator(gradients.device).manual_seed(0)
    rows = gradients.shape[-2]
    probe = torch.randn(rows, rank, generator=generator, dtype=gradients.dtype, device=gradients.device)
    right = _orthonormal(gradients.mT @ probe)  # (g, i, rank)
    # A probe nearly orthogonal to the gradient magnifies its rounding; the iteration takes that back.
    right = _orthonormal(gradients.mT @ (gradients @ right.to(gradients.dtype)))
    # Block by block: a float64 copy of a large gradient would leave the cache.
    blocks = [gradients[..., first : first + _BLOCK, :] for first in range(0, rows, _BLOCK)]
    left = torch.cat([precise(block) @ right for block in blocks], dim=-2)
    product = left.to(gradients.dtype) @ right.mT.to(gradients.dtype)
    missed = torch.linalg.vector_norm(gradients - product, dim=(-2, -1))
    allowed = ROUNDING * torch.finfo(gradients.dtype).eps * torch.linalg.vector_norm(gradients, dim=(-2, -1))
    return (left, right) if bool((missed <= allowed).all()) else None


def _orthonormal(columns: Tensor) -> Tensor:
    """An orthonormal basis of the columns (g, i, rank), in float64."""
    basis: Tensor = torch.linalg.qr(precise(columns))[0]
    return basis


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
