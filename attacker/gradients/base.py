"""The interface between replayed gradients and the distances: inner products and norms, never the gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from attacker.optim.double_precision import precise
from fl_precode.observation import Gradients

_BLOCK = 2**16


class Products(NamedTuple):
    """All that a cosine or squared distance needs to know about two gradients g (of a candidate) and g* (observed).

    Attributes:
        inner: (victims, restarts), <g, g*> over all parameters, accumulated in float64 like the others.
        square: (victims, restarts), <g, g>.
        target: (victims,), <g*, g*>.
    """

    inner: Tensor
    square: Tensor
    target: Tensor


class GradientProducts(ABC):
    """Replays candidates and returns the inner products of their gradients with the observed ones.

    All parameters count, or only those that an implementation is told to match: then products are over these alone.

    The victims of one object share the weights at which the gradients were taken, or each brings its own: it is built
    from one `Replay`, or from one for each victim.
    """

    @abstractmethod
    def __call__(self, candidates: Tensor, labels: Tensor, noise: Sequence[Tensor] = ()) -> Products:
        """Products for every candidate, differentiable with respect to ``candidates`` where they require grad.

        Args:
            candidates: (victims, restarts, batch, channels, height, width), normalised.
            labels: Class indices, broadcastable to (victims, restarts, batch).
            noise: What each bottleneck adds, (victims, restarts, batch, latent) for each one in order of execution;
                empty lets them draw from torch's global generator.

        Returns:
            The products; ``inner`` and ``square`` have shape (victims, restarts).
        """

    @abstractmethod
    def keep(self, victims: Sequence[int], restarts: Sequence[Sequence[int]] | None = None) -> Self:
        """The same products for some of the candidates, for example those that are not done.

        Nothing is measured or factored again; this object stays as it is.

        Args:
            victims: Indices of victims, at least one, in the order that candidates will have.
            restarts: For each of these the indices of its restarts that stay, as many for each; None for all. Products
                that remember nothing of a candidate do not need them.

        Raises:
            IndexError: If an index is out of range.
        """


def squared_norms(targets: Sequence[Gradients], matched: Collection[str]) -> Tensor:
    """<g*, g*> of every observed gradient over the parameters ``matched``, (victims,), summed in float64."""
    return torch.stack([torch.stack([_squared_norm(target[name]) for name in matched]).sum() for target in targets])


def _squared_norm(values: Tensor) -> Tensor:
    flat = values.flatten()
    # Small enough for the cache in float64.
    blocks = [precise(flat[first : first + _BLOCK]) for first in range(0, len(flat), _BLOCK)]
    return torch.stack([torch.dot(block, block) for block in blocks]).sum()


def matched_names(observed: Gradients, matched: Collection[str] | None) -> list[str]:
    """The parameters that count, in the order of the observed gradient; all of them for None.

    Raises:
        ValueError: If a name is unknown, or none is given.
    """
    if matched is None:
        return list(observed)
    unknown = sorted(set(matched) - observed.keys())
    if unknown or not matched:
        raise ValueError(
            f"expected names of parameters of the observed gradient to match, got {unknown or 'none'}; "
            f"there are {', '.join(observed)}"
        )
    return [name for name in observed if name in matched]


def squares(rows: Tensor) -> Tensor:
    """Squared norms (v, r) of rows (v, r, numbers), without a copy of the rows as large as they are."""
    each = rows.flatten(0, 1)
    return (each.unsqueeze(1) @ each.unsqueeze(2)).reshape(rows.shape[:2])
