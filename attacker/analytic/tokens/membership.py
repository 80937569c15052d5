"""Which tokens belong to one image: those whose values its class token's attention mixes to what it added."""

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


def images_of_tokens(block: FirstBlock, anchors: Anchors, tokens: Tensor, places: Tensor) -> tuple[Tensor, float]:
    """The image of each token, at most one token a place in each.

    With w the exponential of a score, ``sum over an image's tokens of w (v - a) = 0`` for each head: linear in the
    memberships. They are solved with values between, rounded place by place, and improved by exchanges.

    Args:
        block: The block.
        anchors: Tokens that ask.
        tokens: (n, width), as they entered the block; means are irrelevant.
        places: (n,), place in the image of each.

    Returns:
        (n,) images, and the share that is left over of what the memberships have to cancel.
    """
    moved, fixed = _equations(block, anchors, tokens)
    images = len(fixed)
    shares = _relaxed(moved, fixed)
    chosen = torch.zeros(len(tokens), dtype=torch.int64, device=tokens.device)
    for place in places.unique().tolist():
        own = (places == place).nonzero().flatten()
        rows, columns = linear_sum_assignment(-shares[own].cpu().numpy())
        chosen[own[torch.as_tensor(rows)]] = torch.as_tensor(columns, device=tokens.device)
    chosen, rest = _exchanged(moved, fixed, chosen, places)
    alone = torch.stack([moved[image][chosen == image].norm(dim=1).sum() for image in range(images)])
    return chosen, float((rest / alone.clamp_min(1e-300)).median())


def _equations(block: FirstBlock, anchors: Anchors, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """(images, n, width) and (images, width): what each token adds to an image's equations, and what is known."""
    attention, moved, fixed = block.attention, [], []
    for token, mixed, also in zip(anchors.tokens, anchors.mixed, anchors.also, strict=True):
        others = block.entry(torch.cat([tokens, also]))
        query = attention.by_heads(attention.query(block.entry(token[None])))  # (heads, 1, w)
        keys, values = attention.by_heads(attention.key(others)), attention.by_heads(attention.value(others))
        scores = (keys @ query.transpose(-1, -2)).squeeze(-1) / query.shape[-1] ** 0.5
        weights = (scores - scores.amax(dim=1, keepdim=True)).exp()
        added = weights[..., None] * (values - mixed.unflatten(-1, (attention.heads, -1))[:, None])
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
