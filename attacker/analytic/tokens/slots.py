"""Place of each token in the image, and the patch at that place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from attacker.analytic.tokens.backward_link import centred
from attacker.analytic.tokens.embedding import TokenEmbedding
from attacker.optim.least_squares import least_squares

_ROOMY: Final = 0.75
"""Share of the width up to which a patch leaves room for the residual that tells its place."""


_FAR: Final = 0.3
"""Relative distance from the constants above which a token may be none of the special ones: an image that repeats has
none of its own."""


@dataclass(frozen=True, kw_only=True)
class PatchSpace:
    """Where patches lie, and how tokens tell them.

    Attributes:
        rows: (k, numbers), orthonormal: the space of all patches of the batch.
        seen: (width, k), what a patch's coordinates there become in a token without its mean.
        basis: (width, k), orthonormal columns of the same space.
    """

    rows: Tensor
    seen: Tensor
    basis: Tensor

    def off(self, tokens: Tensor) -> Tensor:
        """What no patch explains of tokens (..., width)."""
        away = centred(tokens)
        rest: Tensor = away - (away @ self.basis) @ self.basis.T
        return rest

    def patches(self, tokens: Tensor) -> Tensor:
        """(n, numbers) of tokens (n, width) without constants."""
        coordinates: Tensor = least_squares(self.seen, centred(tokens).T)
        return coordinates.T @ self.rows


def patch_space(embedding: TokenEmbedding, gradient: Tensor | None, most: int) -> PatchSpace | None:
    """The space of the batch's patches: all of them where the width has room, else the row space of the gradient.

    Args:
        embedding: How tokens come from patches.
        gradient: (width, numbers) of the patch layer's weight; None where it is not known.
        most: Largest number of patches in the batch.

    Returns:
        The space, or None where it fills the width.
    """
    width, numbers = embedding.weight.shape
    if numbers <= _ROOMY * width:
        rows = torch.eye(numbers, dtype=torch.float64, device=embedding.weight.device)
    elif gradient is None:
        return None
    else:
        values, right = torch.linalg.svd(gradient.double(), full_matrices=False)[1:]
        rank = min(most, int((values > 1e-14 * values[0]).sum()))
        rows = right[:rank]
    if len(rows) >= width - 1:
        return None
    seen = centred((embedding.weight @ rows.T).T).T
    return PatchSpace(rows=rows, seen=seen, basis=torch.linalg.qr(seen).Q)


def class_tokens(embedding: TokenEmbedding, tokens: Tensor, images: int | None) -> tuple[Tensor, Tensor]:
    """Which tokens are the special ones, and how far off they are.

    Args:
        embedding: Says what special tokens are.
        tokens: (n, width), without means.
        images: Number of images, or None: then as many as lie apart from the others.

    Returns:
        (special, images) places among the tokens, and the relative distance of each; empty without special tokens.
    """
    known = centred(embedding.constants[embedding.special])
    far = torch.cdist(known, tokens) / known.norm(dim=1).clamp_min(1e-300)[:, None]
    if not len(known):
        return torch.zeros(0, 0, dtype=torch.int64, device=tokens.device), far.new_zeros(0, 0)
    nearest, most = far[0].sort().values, max(1, len(tokens) // len(known))
    if images is None or images > most or float(nearest[images - 1]) > _FAR:
        images = min(images or most, _apart(nearest, min(most, len(tokens) // len(embedding.constants) + 1)))
    rows, columns = linear_sum_assignment(_log(far).repeat_interleave(images, dim=0).cpu().numpy())
    places = torch.as_tensor(columns, device=tokens.device).view(len(known), images)
    assert len(rows) == places.numel()
    return places, far.gather(1, places)


def _apart(distances: Tensor, most: int) -> int:
    """Number of the smallest distances, at most ``most``, before the largest step."""
    logs = _log(distances[: most + 1])
    return int((logs[1:] - logs[:-1]).argmax()) + 1 if len(logs) > 1 else 1


def places_of_patches(
    embedding: TokenEmbedding, space: PatchSpace, tokens: Tensor, images: int
) -> tuple[Tensor, Tensor, Tensor]:
    """A place for each patch token, at most as many tokens a place as images.

    Args:
        embedding: Says the constants of each place.
        space: Space of the patches.
        tokens: (n, width), without means.
        images: Number of images.

    Returns:
        (n,) places among ``embedding.places``, -1 for tokens beyond all slots; (n,) relative residuals; (n, numbers)
        patches.
    """
    constants = centred(embedding.constants[embedding.places])
    off, known = space.off(tokens), space.off(constants)
    cost = torch.cdist(off, known) / centred(tokens).norm(dim=1).clamp_min(1e-300)[:, None]
    rows, columns = linear_sum_assignment(_log(cost).repeat(1, images).cpu().numpy())
    places = torch.full((len(tokens),), -1, dtype=torch.int64, device=tokens.device)
    chosen = torch.as_tensor(rows, device=tokens.device)
    places[chosen] = torch.as_tensor(columns, device=tokens.device) % len(constants)
    residuals = cost.gather(1, places.clamp_min(0)[:, None]).squeeze(1)
    patches = space.patches(tokens - constants[places.clamp_min(0)])
    return places, torch.where(places >= 0, residuals, 1.0), patches


def _log(values: Tensor) -> Tensor:
    return values.clamp_min(1e-14).log()
