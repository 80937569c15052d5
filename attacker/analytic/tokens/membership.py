"""Membership of tokens in images, by the mixture of values that each class token's attention added."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from attacker.analytic.tokens.first_block import FirstBlock

_RIDGE = 1e-10
_SWEEPS = 20


@dataclass(frozen=True, kw_only=True)
class Anchors:
    """One token of each image whose attention is known.

    Attributes:
        tokens: (images, width), as they entered the block.
        mixed: (images, width), what the attention gave them before its projection, heads side by side.
        also: (images, k, width), further tokens that are known to belong to each image, themselves among them.
    """

    tokens: Tensor
    mixed: Tensor
    also: Tensor


def images_of_tokens(
    block: FirstBlock, anchors: Anchors, tokens: Tensor, places: Tensor, mixed: Tensor
) -> tuple[Tensor, float]:
    """The image of each token, at most one token a place in each.

    With w the exponential of a score, ``sum over an image's tokens of w (v - a) = 0`` for each head: linear in the
    memberships. They are solved with values between and rounded place by place. Then every token says to which of the
    images it belongs: to the one whose tokens its own attention mixes to what it was found to add.

    Args:
        block: The block.
        anchors: Tokens that ask first.
        tokens: (n, width), as they entered the block; means are irrelevant.
        places: (n,), place in the image of each.
        mixed: (n, width), what the attention gave each, heads side by side.

    Returns:
        (n,) images, and the median relative distance of what an image's tokens mix to from what each was found to add.
    """
    moved, fixed = _equations(block, anchors, tokens)
    images = len(fixed)
    first = _one_each(-_relaxed(moved, fixed), places)
    if not len(tokens):
        return first, 0.0
    starts = [first, _exchanged(moved, fixed, first, places)[0]]
    answers = _Answers(block, anchors, tokens, places, mixed)
    found = [_settled(answers, start, images) for start in starts]
    return min(found, key=lambda one: one[1])


def _settled(answers: _Answers, start: Tensor, images: int) -> tuple[Tensor, float]:
    """Memberships that every token agrees with, or the best that were met, and the median distance."""
    chosen, best, least = start, start, float("inf")
    for _ in range(_SWEEPS):
        cost = answers.distances(chosen, images)
        own = cost.gather(1, chosen[:, None]).squeeze(1)
        level = float(own.clamp_min(1e-14).log().mean())
        if level < least:
            best, least, middle = chosen, level, float(own.median())
        changed = _one_each(cost.clamp_min(1e-14).log(), answers.places)
        if torch.equal(changed, chosen):
            break
        chosen = changed
    return best, middle


def _one_each(cost: Tensor, places: Tensor) -> Tensor:
    """(n,) images by (n, images) costs, the tokens of a place in different ones."""
    chosen = torch.zeros(len(cost), dtype=torch.int64, device=cost.device)
    for place in torch.unique(places).tolist():
        own = (places == place).nonzero().flatten()
        rows, columns = linear_sum_assignment(cost[own].cpu().numpy())
        chosen[own[torch.as_tensor(rows)]] = torch.as_tensor(columns, device=cost.device)
    return chosen


class _Answers:
    """What the attention of each token would give it in each image.

    Args:
        block: The block.
        anchors: Say which further tokens belong to each image.
        tokens: (n, width).
        places: (n,), place in the image of each.
        mixed: (n, width), what the attention was found to give each.
    """

    def __init__(self, block: FirstBlock, anchors: Anchors, tokens: Tensor, places: Tensor, mixed: Tensor) -> None:
        attention, self.places = block.attention, places
        images, extra, _ = anchors.also.shape
        others = block.entry(torch.cat([tokens, anchors.also.flatten(0, 1)]))
        query = attention.by_heads(attention.query(block.entry(tokens)))
        key, self._values = attention.by_heads(attention.key(others)), attention.by_heads(attention.value(others))
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        self._weights = (scores - scores.amax(dim=-1, keepdim=True)).exp()  # (heads, n, n + further)
        self._further = torch.eye(images, device=tokens.device).repeat_interleave(extra, dim=1).to(tokens)
        self._elsewhere = (places[:, None] != places).to(tokens)
        self._mixed = mixed

    def distances(self, chosen: Tensor, images: int) -> Tensor:
        """(n, images): relative distance of what each token would get in each image, in the place of the one there."""
        count = len(chosen)
        itself = torch.eye(count, device=chosen.device).to(self._elsewhere)
        columns = []
        for image in range(images):
            there = self._elsewhere * (chosen == image).to(itself) + itself
            mask = torch.cat([there, self._further[image].expand(count, -1)], dim=1)
            weights = self._weights * mask
            given = (weights @ self._values) / weights.sum(dim=-1, keepdim=True)
            columns.append((given.transpose(0, 1).flatten(1) - self._mixed).norm(dim=1))
        relative: Tensor = torch.stack(columns, dim=1) / self._mixed.norm(dim=1, keepdim=True).clamp_min(1e-300)
        return relative


def _equations(block: FirstBlock, anchors: Anchors, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """(images, n, width) and (images, width): what each token adds to an image's equations, and what is known."""
    attention, moved, fixed = block.attention, [], []
    for token, mixed, also in zip(anchors.tokens, anchors.mixed, anchors.also, strict=True):
        others = block.entry(torch.cat([tokens, also]))
        query = attention.by_heads(attention.query(block.entry(token[None])))  # (heads, 1, w)
        keys, values = attention.by_heads(attention.key(others)), attention.by_heads(attention.value(others))
        scores = (keys @ query.transpose(-1, -2)).squeeze(-1) / query.shape[-1] ** 0.5
        weights = (scores - scores.amax(dim=1, keepdim=True)).exp()
        added = weights[..., None] * (values - mixed.view(attention.heads, -1)[:, None])
        rows = added.transpose(0, 1).flatten(1)  # (n + k, width)
        moved.append(rows[: len(tokens)])
        fixed.append(rows[len(tokens) :].sum(dim=0))
    return torch.stack(moved), torch.stack(fixed)


def _relaxed(moved: Tensor, fixed: Tensor) -> Tensor:
    """(n, images): memberships that sum to one for each token, as numbers, by least squares."""
    images, count, _ = moved.shape
    scale = moved.square().sum(dim=2).mean(dim=1).sqrt().clamp_min(1e-300)
    a, b = moved / scale[:, None, None], fixed / scale[:, None]
    normal = a.new_zeros(images * count, images * count)
    target = a.new_zeros(images * count)
    for image in range(images):
        own = slice(image * count, (image + 1) * count)
        gram = a[image] @ a[image].T
        normal[own, own] = gram + _RIDGE * gram.diagonal().mean() * torch.eye(count).to(gram)
        target[own] = -a[image] @ b[image]
    heavy = normal.diagonal().mean()
    together = heavy * torch.eye(count).to(normal)
    for one in range(images):
        target[one * count : (one + 1) * count] += heavy
        for other in range(images):
            normal[one * count : (one + 1) * count, other * count : (other + 1) * count] += together
    solved: Tensor = torch.linalg.solve(normal, target)
    return solved.view(images, count).T.clamp(-1, 2)


def _exchanged(moved: Tensor, fixed: Tensor, chosen: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Memberships after all exchanges of two tokens of a place that help, and the norm that is left for each image."""
    images = len(fixed)
    scale = fixed.norm(dim=1).clamp_min(1e-300)
    rest = torch.stack([fixed[i] + moved[i][chosen == i].sum(dim=0) for i in range(images)])
    at = {
        (int(place), int(image)): token
        for token, (place, image) in enumerate(zip(places.tolist(), chosen.tolist(), strict=True))
    }
    pairs = [(one, other) for one in range(images) for other in range(one)]
    for _ in range(_SWEEPS):
        changed = False
        for place in sorted({place for place, _ in at}):
            for one, other in pairs:
                first, second = at.get((place, one)), at.get((place, other))
                if first is None and second is None:
                    continue
                step_one, step_other = torch.zeros_like(rest[0]), torch.zeros_like(rest[0])
                if first is not None:
                    step_one, step_other = step_one - moved[one, first], step_other + moved[other, first]
                if second is not None:
                    step_one, step_other = step_one + moved[one, second], step_other - moved[other, second]
                now = (rest[one].norm() / scale[one]) ** 2 + (rest[other].norm() / scale[other]) ** 2
                then = ((rest[one] + step_one).norm() / scale[one]) ** 2
                then = then + ((rest[other] + step_other).norm() / scale[other]) ** 2
                if then < now * (1 - 1e-9):
                    rest[one], rest[other] = rest[one] + step_one, rest[other] + step_other
                    _put(at, (place, one), second)
                    _put(at, (place, other), first)
                    changed = True
        if not changed:
            break
    result = chosen.clone()
    for (_, image), token in at.items():
        result[token] = image
    return result, rest.norm(dim=1)


def _put(at: dict[tuple[int, int], int], slot: tuple[int, int], token: int | None) -> None:
    at.pop(slot, None)
    if token is not None:
        at[slot] = token
