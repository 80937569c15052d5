"""Patches of places where no token was found: as their neighbours at first, then as the other tokens of the image say."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from attacker.analytic.tokens.backward_link import LinkedTokens
from attacker.analytic.tokens.first_block import FirstBlock
from attacker.analytic.tokens.layer_norm import normalised
from attacker.analytic.tokens.refinement import PlacedTokens, refine, with_mismatch
from attacker.analytic.tokens.slots import PatchSpace
from attacker.optim.deadline import time_is_up

_WRONG: Final = 0.2
"""Mismatch above which a token may stand at the wrong place."""

_WORSE: Final = 10.0
"""Times the median of its image: the image itself may not have converged."""

_ROUNDS: Final = 3
_STEPS: Final = 40
_PRIOR: Final = 1e-6
"""Weight of the distance from the first guess, beside the tokens' mismatch."""


def filled_by_neighbours(block: FirstBlock, patches: Tensor) -> Tensor:
    """Patches (images, places, numbers) whose NaN rows are the mean of the nearest that are known."""
    where = block.patches.places()[block.embedding.patch.cpu()].to(patches)
    filled = patches.clone()
    for image in range(len(patches)):
        there = ~patches[image].isnan().any(dim=1)
        if not bool(there.any()):
            filled[image] = torch.nanmean(patches.flatten(0, 1), dim=0)
            continue
        far = torch.cdist(where, where[there])
        near = (far <= 1.01 * far.amin(dim=1, keepdim=True)).to(patches)
        means = (near @ patches[image][there]) / near.sum(dim=1, keepdim=True)
        filled[image] = torch.where(there[:, None], patches[image], means)
    return filled


def fill_missing(block: FirstBlock, space: PatchSpace, linked: LinkedTokens, placed: PlacedTokens) -> PlacedTokens:
    """Take tokens out that fit nowhere, and find the patches of empty places by what the others attend to.

    Args:
        block: The block.
        space: Of the patches.
        linked: Tokens that were found.
        placed: Where they stand.
    """
    best = placed
    for _ in range(_ROUNDS):
        tried = _without_misfits(best)
        empty = (tried.slots[:, block.embedding.places] < 0) & (tried.slots >= 0).any(dim=1, keepdim=True)
        if not bool(empty.any()) or time_is_up():
            break
        gaps = torch.where(empty[..., None], float("nan"), tried.patches)
        patches = _attended(block, linked, tried.slots, filled_by_neighbours(block, gaps), empty)
        tried = refine(block, space, linked, with_mismatch(block, linked, patches, tried.slots))
        before, after = _fit(best), _fit(tried)
        if not bool((after < before).any()):
            break
        best = replace(tried) if bool((after <= before).all()) else _better(best, tried, after < before)
    return best


def _fit(placed: PlacedTokens) -> Tensor:
    """(images,), mean logarithm of the mismatch; places without a token count as one."""
    logs: Tensor = placed.mismatch.nan_to_num(nan=1.0).clamp_min(1e-14).log().mean(dim=1)
    return logs


def _better(one: PlacedTokens, other: PlacedTokens, where: Tensor) -> PlacedTokens:
    used = torch.where(where[:, None], other.slots, one.slots)
    flat = used[used >= 0]
    if len(flat.unique()) < len(flat):  # a token has moved between images
        return one
    return PlacedTokens(
        patches=torch.where(where[:, None, None], other.patches, one.patches),
        slots=used,
        mismatch=torch.where(where[:, None], other.mismatch, one.mismatch),
    )


def _without_misfits(placed: PlacedTokens) -> PlacedTokens:
    median = placed.mismatch.nanmedian(dim=1, keepdim=True).values
    wrong = (placed.mismatch > _WRONG) & (placed.mismatch > _WORSE * median)
    return replace(placed, slots=torch.where(wrong, -1, placed.slots))


def _attended(block: FirstBlock, linked: LinkedTokens, slots: Tensor, patches: Tensor, empty: Tensor) -> Tensor:
    """The patches with those of empty places searched, so that a forward pass gives the tokens that are there."""
    start = patches[empty].clone()
    unknown = start.clone().requires_grad_(True)
    there = slots >= 0
    wanted = linked.hat[slots.clamp_min(0)][there]
    scale = start.square().mean().clamp_min(1e-12)
    optimiser = torch.optim.LBFGS([unknown], max_iter=_STEPS, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        filled = patches.clone()
        filled[empty] = unknown
        tokens = block.embedding.tokens(filled)
        hat = normalised(tokens + block.attended(tokens), block.norm.eps)[there]
        prior = (unknown - start).square().mean() / scale
        value: Tensor = (hat - wanted).square().mean() + _PRIOR * prior
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimiser.step(loss)
    found = unknown.detach()
    result = patches.clone()
    result[empty] = torch.where(found.isfinite(), found, start)
    return result
