"""Patches of places where no token was found: first as their neighbours, then as the image's other tokens say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor, nn

from attacker.analytic.tokens.backward_link import LinkedTokens, centred
from attacker.analytic.tokens.first_block import FirstBlock
from attacker.analytic.tokens.refinement import PlacedTokens, refine, with_mismatch
from attacker.analytic.tokens.slots import PatchSpace
from attacker.optim.deadline import time_is_up

_WRONG: Final = 0.2
"""Mismatch above which a token may stand at the wrong place."""

_WORSE: Final = 10.0
"""Times the median of its image: the image itself may not have converged."""

_ROUNDS: Final = 3
_STEPS: Final = 2
_POWERS: Final = 11
"""Weights of the first guess that are tried, powers of ten up to one, relative to what the tokens say."""

_LEAST_GAIN: Final = 1e-3
_MOST_UNKNOWNS: Final = 400
"""In one image, whose forward pass is made twice for each; beyond them the best guess is left."""

_GUESSES: Final = 16
_AT_ONCE: Final = 32
_DIFFERENCE: Final = 1e-4
"""Of two points between which a slope is taken, relative to the size of pixels."""


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
        space: Space of the patches.
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
        patches = _attended(block, space, linked, tried.slots, filled_by_neighbours(block, gaps), empty)
        tried = refine(block, space, linked, with_mismatch(block, linked, patches, tried.slots))
        before, after = _fit(best), _fit(tried)
        if not bool((after < before).any()):
            break
        best = tried if bool((after <= before).all()) else _better(best, tried, after < before)
    return best


def _fit(placed: PlacedTokens) -> Tensor:
    """(images,), mean logarithm of the mismatch; places without a token count as one."""
    logs: Tensor = placed.mismatch.nan_to_num(nan=1.0).clamp_min(1e-14).log().mean(dim=1)
    return logs


def _better(one: PlacedTokens, other: PlacedTokens, where: Tensor) -> PlacedTokens:
    used = torch.where(where[:, None], other.slots, one.slots)
    flat = used[used >= 0]
    if len(torch.unique(flat)) < len(flat):  # a token has moved between images
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


def _attended(
    block: FirstBlock, space: PatchSpace, linked: LinkedTokens, slots: Tensor, patches: Tensor, empty: Tensor
) -> Tensor:
    """The patches with those of empty places searched, so that a forward pass gives the tokens that are there."""
    result = patches.clone()
    for image in empty.any(dim=1).nonzero().flatten().tolist():
        hat = linked.hat[slots[image].clamp_min(0)] * (slots[image] >= 0)[:, None]
        result[image] = _searched(block, space, hat, slots[image] >= 0, patches, image, empty[image])
        if time_is_up():
            break
    return result


def _searched(
    block: FirstBlock, space: PatchSpace, hat: Tensor, there: Tensor, batch: Tensor, image: int, empty: Tensor
) -> Tensor:
    """Gauss-Newton for one image from the best of several guesses, with a prior that keeps what nothing determines.

    Tokens are compared where neither their own patch nor their standard deviation shows: both were fitted to what
    stood in the empty places before.
    """
    gaps, rows, patches = empty.nonzero().flatten(), space.rows, batch[image]
    special = torch.zeros(len(there), 1, dtype=torch.bool, device=there.device)
    special[block.embedding.special] = True

    def seen(tokens: Tensor) -> Tensor:
        return torch.where(special, centred(tokens), space.off(tokens))

    own = nn.functional.normalize(seen(hat), dim=1)
    constants = block.embedding.constants

    def filled(unknown: Tensor) -> Tensor:
        values = unknown.view(-1, len(gaps), len(rows)) @ rows
        return patches.expand(len(values), -1, -1).index_add(1, gaps, values)

    def away(unknown: Tensor) -> Tensor:
        added = seen(block.attended(block.embedding.tokens(filled(unknown))) + constants)
        rest: Tensor = (added - (added * own).sum(dim=2, keepdim=True) * own)[:, there]
        return rest.flatten(1)

    unknown = patches.new_zeros(len(gaps) * len(rows))
    for number, gap in enumerate(gaps.tolist()):
        guesses = torch.cat([batch[:, gap], patches[_nearest(block, gap)]]) - patches[gap]
        tried = unknown.repeat(len(guesses) + 1, 1)
        tried[1:, number * len(rows) : (number + 1) * len(rows)] = guesses @ rows.T
        unknown = tried[away(tried).square().sum(dim=1).argmin()]
    if len(unknown) > _MOST_UNKNOWNS:
        return filled(unknown)[0]
    rest = away(unknown)[0]
    size = float((patches - patches.mean()).square().mean().sqrt()) * (rows.shape[1] / len(rows)) ** 0.5
    for _ in range(_STEPS):
        slopes = _slopes(away, unknown, _DIFFERENCE * size)
        moved = _step(away, slopes, unknown, rest, size)
        if moved is None:
            break
        before, (unknown, rest) = rest, moved
        if float(rest.square().sum()) > (1 - _LEAST_GAIN) * float(before.square().sum()):
            break
    return filled(unknown)[0]


def _nearest(block: FirstBlock, place: int) -> Tensor:
    """Places whose patches a patch may be like, the nearest first."""
    where = block.patches.places()[block.embedding.patch.cpu()]
    return torch.cdist(where[place : place + 1], where)[0].argsort()[1 : _GUESSES + 1].to(block.embedding.patch.device)


def _step(
    away: Callable[[Tensor], Tensor], slopes: Tensor, unknown: Tensor, rest: Tensor, size: float
) -> tuple[Tensor, Tensor] | None:
    """The longest step that helps and leaves patches of the usual size, and what is left after it; None without one."""
    normal, pull = slopes.T @ slopes, slopes.T @ rest
    level, eye = normal.diagonal().mean(), torch.eye(len(normal)).to(normal)
    for power in range(_POWERS):
        weight = level * 10.0 ** (power - _POWERS + 1)
        tried = unknown - torch.linalg.solve(normal + weight * eye, pull + weight * unknown)
        if float(tried.square().mean().sqrt()) > size:
            continue
        after = away(tried)[0]
        if float(after.square().sum()) < float(rest.square().sum()):
            return tried, after
    return None


def _slopes(function: Callable[[Tensor], Tensor], point: Tensor, length: float) -> Tensor:
    """(values, numbers), the Jacobian by central differences of a function of several points at once."""
    moves = length * torch.eye(len(point)).to(point)
    parts = [moves[first : first + _AT_ONCE] for first in range(0, len(moves), _AT_ONCE)]
    columns = [(function(point + part) - function(point - part)) / (2 * length) for part in parts]
    return torch.cat(columns).T
