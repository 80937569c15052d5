"""Images from the tokens of a batch: every step with its residual."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from attacker.analytic.spans.two_spans import TwoLayers
from attacker.analytic.tokens.backward_link import LinkedTokens, link_tokens
from attacker.analytic.tokens.first_block import FirstBlock
from attacker.analytic.tokens.membership import Anchors, images_of_tokens
from attacker.analytic.tokens.missing_patches import fill_missing, filled_by_neighbours
from attacker.analytic.tokens.refinement import PlacedTokens, refine, with_mismatch
from attacker.analytic.tokens.slots import PatchSpace, class_tokens, patch_space, places_of_patches
from attacker.reasons import Reason, because

_CLOSE: Final = 1e-2
"""Mismatch of the median token below which an image counts as confirmed."""


@dataclass(frozen=True, kw_only=True)
class BatchImages:
    """What the tokens of a batch gave.

    Attributes:
        images: (images, channels, height, width), as the model takes them.
        placed: (images,), how many of each image's tokens were found.
        mismatch: (images,), median relative distance of the image's tokens in a forward pass from those found.
        inner: (images, tokens, units), gradient at the perceptron's first layer, zero where no token was found.
        residuals: Residuals of each step, relative, by name.
    """

    images: Tensor
    placed: Tensor
    mismatch: Tensor
    inner: Tensor
    residuals: dict[str, float]

    @property
    def confirmed(self) -> Tensor:
        """(images,), whether all tokens were found and a forward pass of the image gives them again."""
        return (self.mismatch < _CLOSE) & (self.placed == self.inner.shape[1])


def images_of_batch(
    block: FirstBlock,
    layers: TwoLayers,
    hidden: Tensor,
    out_gradient: Tensor,
    patch_gradient: Tensor | None,
    *,
    size: int | None,
) -> BatchImages | Reason:
    """Follow tokens to the images.

    Args:
        block: The first block.
        layers: Its perceptron.
        hidden: (n, width), tokens that entered it.
        out_gradient: Gradient of the attention's projection.
        patch_gradient: Gradient of the patch layer's weight; None where it did not move.
        size: Number of images; None where it is not known.
    """
    embedding = block.embedding
    linked = link_tokens(block, layers, hidden, out_gradient)
    if isinstance(linked, Reason):
        return linked
    each = len(embedding.constants)
    guess = size or max(1, round(len(hidden) / each))
    gradient = None if patch_gradient is None else patch_gradient.reshape(block.width, -1)
    space = patch_space(embedding, gradient, guess * len(embedding.places))
    if space is None:
        return because("patches-fill-width", name=block.patches.name, width=block.width)
    start, residuals = _first_guess(block, space, linked, size, guess)
    start = with_mismatch(block, linked, filled_by_neighbours(block, start.patches), start.slots)
    refined = refine(block, space, linked, start)
    refined = fill_missing(block, space, linked, refined)
    return _as_images(block, linked, refined, linked.residuals | residuals)


def _first_guess(
    block: FirstBlock, space: PatchSpace, linked: LinkedTokens, known: int | None, guess: int
) -> tuple[PlacedTokens, dict[str, float]]:
    """Places and images of all tokens by their own residuals; patches are NaN where there is no token."""
    embedding = block.embedding
    special, far = class_tokens(embedding, linked.tokens, known)
    images = special.shape[1] if len(special) else guess
    others = torch.ones(len(linked.tokens), dtype=torch.bool, device=linked.hat.device)
    others[special.flatten()] = False
    rest = others.nonzero().flatten()
    places, residual, patches = places_of_patches(embedding, space, linked.tokens[rest], images)
    rest, places, patches = rest[places >= 0], places[places >= 0], patches[places >= 0]
    slots = torch.full((images, len(embedding.constants)), -1, dtype=torch.int64, device=linked.hat.device)
    anchors = special[0] if len(special) else _resolved(linked, rest, places, residual, images)
    member, left = _members(block, linked, anchors, rest, places, patches)
    grouped = torch.full(
        (images, len(embedding.places), patches.shape[1]), float("nan"), dtype=torch.float64, device=linked.hat.device
    )
    grouped[member, places] = patches
    slots[member, embedding.places[places]] = rest
    for row, place in zip(special, embedding.special.tolist(), strict=True):
        slots[:, place] = row
    residuals = {"places": float(residual.median()), "members": left}
    if len(special):
        residuals["class tokens"] = float(far.max())
    return PlacedTokens(patches=grouped, slots=slots, mismatch=torch.full(slots.shape, float("nan"))), residuals


def _resolved(linked: LinkedTokens, rest: Tensor, places: Tensor, residual: Tensor, images: int) -> Tensor:
    """Tokens at one place, one of each image, that are told apart best."""
    best, chosen = float("inf"), rest[:images]
    for place in torch.unique(places).tolist():
        own = (places == place).nonzero().flatten()
        if len(own) < images:
            continue
        values = linked.tokens[rest[own]]
        apart = float(torch.pdist(values).min()) if images > 1 else 1.0
        score = float(residual[own].max()) / max(apart, 1e-300)
        if score < best:
            best, chosen = score, rest[own]
    return chosen


def _members(
    block: FirstBlock, linked: LinkedTokens, anchors: Tensor, rest: Tensor, places: Tensor, patches: Tensor
) -> tuple[Tensor, float]:
    """The image of each patch token, and what the memberships leave over."""
    embedding, images = block.embedding, len(anchors)
    tokens = embedding.constants[embedding.places[places]] + patches @ embedding.weight.T
    constants = embedding.constants[embedding.special].expand(images, -1, -1)
    member = torch.full((len(rest),), -1, dtype=torch.int64, device=rest.device)
    if constants.shape[1]:
        asking, also = constants[:, 0], constants
    else:
        rows = torch.stack([(rest == anchor).nonzero().flatten()[0] for anchor in anchors])
        member[rows] = torch.arange(images, device=rest.device)
        asking, also = tokens[rows], tokens[rows][:, None]
    open_rows = (member < 0).nonzero().flatten()
    known = Anchors(tokens=asking, mixed=linked.mixed[anchors], also=also)
    member[open_rows], left = images_of_tokens(
        block, known, tokens[open_rows], places[open_rows], linked.mixed[rest[open_rows]]
    )
    return member, left


def _as_images(
    block: FirstBlock, linked: LinkedTokens, placed: PlacedTokens, residuals: dict[str, float]
) -> BatchImages:
    layer, embedding = block.patches, block.embedding
    images = torch.cat([layer.image(embedding.in_layer_order(one))[0] for one in placed.patches])
    inner = linked.inner[placed.slots.clamp_min(0)] * (placed.slots >= 0)[..., None]
    return BatchImages(
        images=images,
        placed=(placed.slots >= 0).sum(dim=1),
        mismatch=placed.mismatch.nanmedian(dim=1).values,
        inner=inner,
        residuals=residuals,
    )
