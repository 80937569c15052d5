"""Patches refined with the attention of the images themselves: each token against every place of every image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from attacker.analytic.tokens.backward_link import LinkedTokens, centred
from attacker.analytic.tokens.first_block import FirstBlock
from attacker.analytic.tokens.layer_norm import normalised
from attacker.analytic.tokens.slots import PatchSpace
from attacker.optim.deadline import time_is_up

_ROUNDS: Final = 25
_FIRST_ROUNDS: Final = 4
_PATIENCE: Final = 4
"""Rounds without progress that end it."""

_PROGRESS: Final = 0.9
_EXACT: Final = 1e-12
_SMALLEST_STEP: Final = 1 / 64


@dataclass(frozen=True, kw_only=True)
class PlacedTokens:
    """Patches of all images, and which token stands where.

    Attributes:
        patches: (images, places, numbers).
        slots: (images, tokens), which found token stands in each place of the block's order, -1 for none.
        mismatch: (images, tokens), relative distance of what the images give there from the token; NaN for none.
    """

    patches: Tensor
    slots: Tensor
    mismatch: Tensor

    def level(self) -> float:
        """Mean logarithm of the mismatch, that of empty places taken as one."""
        return float(self.mismatch.nan_to_num(nan=1.0).clamp_min(1e-14).log().mean())

    def score(self) -> Tensor:
        """(images,), root mean square of the mismatch; infinite without any token."""
        squares: Tensor = self.mismatch.square().nanmean(dim=1).sqrt().nan_to_num(nan=float("inf"))
        return squares


def with_mismatch(block: FirstBlock, linked: LinkedTokens, patches: Tensor, slots: Tensor) -> PlacedTokens:
    """The same with the mismatch measured."""
    tokens = block.embedding.tokens(patches)
    hat = normalised(tokens + block.attended(tokens), block.norm.eps)
    away = (hat - linked.hat[slots.clamp_min(0)]).norm(dim=2) / hat.shape[2] ** 0.5
    return PlacedTokens(patches=patches, slots=slots, mismatch=torch.where(slots >= 0, away, float("nan")))


def refine(
    block: FirstBlock, space: PatchSpace, linked: LinkedTokens, start: PlacedTokens, rounds: int = _ROUNDS
) -> PlacedTokens:
    """Fixed point of the exact attention; of each image the best that was met.

    Args:
        block: The block.
        space: Space of the patches.
        linked: Tokens that were found.
        start: Patches, without NaN, and first places.
        rounds: Rounds of assignment and solving, at most.
    """
    best = _together(block, space, linked, start)
    step = start.patches.new_ones(len(start.patches))
    idle = 0
    for _ in range(rounds):
        patches, slots = _solved(block, space, linked, best)
        moved = best.patches + step[:, None, None] * (patches - best.patches)
        current = with_mismatch(block, linked, moved, slots)
        before, after = best.score(), current.score()
        better = after < before
        best = _chosen(better, current, best)
        step = torch.where(better, (2 * step).clamp_max(1.0), step / 2)
        idle = 0 if bool((after < _PROGRESS * before).any()) else idle + 1
        if idle >= _PATIENCE or bool((best.score() < _EXACT).all()) or bool((step < _SMALLEST_STEP).all()):
            break
        if time_is_up():
            break
    return best


def _together(block: FirstBlock, space: PatchSpace, linked: LinkedTokens, start: PlacedTokens) -> PlacedTokens:
    """The best of a few rounds in which all images move at once, so that tokens may change between them."""
    best = current = start
    for _ in range(_FIRST_ROUNDS):
        patches, slots = _solved(block, space, linked, current)
        current = with_mismatch(block, linked, patches, slots)
        if current.level() < best.level():
            best = current
    return best


def _chosen(better: Tensor, one: PlacedTokens, other: PlacedTokens) -> PlacedTokens:
    """Image by image the one or the other; a token that then stands twice leaves the image where it fits worse."""
    patches = torch.where(better[:, None, None], one.patches, other.patches)
    slots = torch.where(better[:, None], one.slots, other.slots)
    mismatch = torch.where(better[:, None], one.mismatch, other.mismatch)
    taken: dict[int, tuple[float, int, int]] = {}
    slots, mismatch = slots.clone(), mismatch.clone()
    for image, place in (slots >= 0).nonzero().tolist():
        token, off = int(slots[image, place]), float(mismatch[image, place])
        if token in taken:
            worse = max(taken[token], (off, image, place))
            slots[worse[1], worse[2]], mismatch[worse[1], worse[2]] = -1, float("nan")
            taken[token] = min(taken[token], (off, image, place))
        else:
            taken[token] = (off, image, place)
    return replace(one, patches=patches, slots=slots, mismatch=mismatch)


def _solved(block: FirstBlock, space: PatchSpace, linked: LinkedTokens, now: PlacedTokens) -> tuple[Tensor, Tensor]:
    """Places of all tokens given the images, and the patches of these places."""
    embedding, count = block.embedding, len(linked.hat)
    tokens = embedding.tokens(now.patches)
    queries = linked.tokens.clone()
    image, place = (now.slots >= 0).nonzero(as_tuple=True)
    queries[now.slots[image, place]] = tokens[image, place]
    hidden = block.entry(tokens)
    attended = block.attention.added(block.attention.mixed(block.entry(queries)[None], hidden))  # (images, n, width)
    cost, sizes = _costs(block, space, linked.hat, attended)
    images, total = len(tokens), tokens.shape[1]
    flat = cost.permute(1, 0, 2).reshape(count, images * total)
    rows, columns = linear_sum_assignment(flat.clamp_min(1e-14).log().cpu().numpy())
    who, where = torch.as_tensor(rows, device=flat.device), torch.as_tensor(columns, device=flat.device)
    slots = torch.full((images * total,), -1, dtype=torch.int64, device=flat.device)
    slots[where] = who
    slots = slots.view(images, total)
    patches = now.patches.clone()
    there, which = (slots[:, embedding.places] >= 0).nonzero(as_tuple=True)
    spot = embedding.places[which]
    token = slots[there, spot]
    size = sizes.permute(1, 0, 2)[token, there, spot]
    rest = size[:, None] * linked.hat[token] - attended[there, token] - embedding.constants[spot]
    patches[there, which] = space.patches(rest)
    return patches, slots


def _costs(block: FirstBlock, space: PatchSpace, hat: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
    """(images, n, tokens): relative distance of each token from each place, and its standard deviation there."""
    embedding = block.embedding
    images, count, _ = attended.shape
    cost = attended.new_zeros(images, count, len(embedding.constants))
    sizes = torch.zeros_like(cost)
    for off, places in ((centred, embedding.special), (space.off, embedding.places)):
        if not len(places):
            continue
        u, v, p = off(hat), off(attended), off(embedding.constants[places])
        power = u.square().sum(dim=1)[:, None].clamp_min(1e-300)  # (n, 1)
        along = ((u * v).sum(dim=2)[..., None] + u @ p.T) / power
        whole = v.square().sum(dim=2)[..., None] + 2 * v @ p.T + p.square().sum(dim=1)
        rest = (whole - along.square() * power).clamp_min(0).sqrt() / (along.abs() * power.sqrt()).clamp_min(1e-300)
        cost[:, :, places] = torch.where(along > 0, rest, 1e3)
        sizes[:, :, places] = along
    return cost, sizes
