"""Meaning of a client's arrays where nobody names it: weights, differences or gradients, and the steps behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

Meaning = Literal["weights", "difference", "negative difference", "gradient"]

_NEIGHBOUR: Final = 0.5
"""Cosine to what was sent from which arrays are trained weights: changes and gradients point elsewhere."""


@dataclass(frozen=True)
class MeaningGuess:
    """What arrays are taken for, and why."""

    meaning: Meaning
    because: str


_RANK_SHARE: Final = 1e-3
"""Of the largest singular value; smaller ones may be rounding of the gradients themselves."""


def meaning_of(
    sent: Mapping[str, Tensor],
    received: Mapping[str, Tensor],
    *,
    classifier_bias: str | None,
    rate: float | None,
    images: int | None,
) -> MeaningGuess:
    """Whether arrays are weights near those that were sent, or their change, or a gradient.

    The change and the gradient of one step point in opposite directions. Cross-entropy tells which is which at the
    classifier's bias, as long as the images are fewer than half of the classes: its gradient, mean probability minus
    share of the labels, sums to zero, is negative for classes of the images only, and its absolute values sum to 2 at
    most.

    Args:
        sent: Floating-point parameters by name.
        received: What the client replied under the same names.
        classifier_bias: Name of the bias before the class scores, where there is one.
        rate: Announced learning rate.
        images: Behind the reply; None, where that is not known, is taken as one.
    """
    before, after = _flat(sent, received), _flat(received, received)
    size, length = float(after.norm()), float(before.norm())
    cosine = float(before @ after) / (size * length) if size and length else 1.0
    if cosine > _NEIGHBOUR:
        return MeaningGuess("weights", "they lie near the weights that were sent")
    far = f"they point elsewhere than the weights that were sent (cosine {cosine:.2f})"
    bias = received.get(classifier_bias or "")
    if bias is None or not _sums_to_zero(bias) or 2 * (images or 1) >= len(bias):
        return MeaningGuess("difference", f"{far}; which sign they have cannot be seen")
    if int((bias < 0).sum()) > int((bias > 0).sum()):
        return MeaningGuess("difference", f"{far}; the classifier's bias moves towards few classes")
    total = float(bias.abs().sum())
    if rate is not None and total <= 2 * rate:
        because = f"{far}; the classifier's bias has the sign of a gradient, and the learning rate's size"
        return MeaningGuess("negative difference", because)
    return MeaningGuess("gradient", f"{far}; the classifier's bias has the sign and the size of a gradient")


def steps_counted(sent: Mapping[str, Tensor], received: Mapping[str, Tensor]) -> int | None:
    """Local steps, as the counters of batch normalisation count forward passes in training; None without them."""
    found = {
        int(value) - int(sent[name])
        for name, value in received.items()
        if name.rpartition(".")[2] == "num_batches_tracked" and name in sent and value.numel() == 1
    }
    return found.pop() if len(found) == 1 and min(found) > 0 else None


def rank_of(weight: Tensor, change: Tensor) -> int:
    """Rank of a layer's change beyond the rounding of the weights that were added to and subtracted from.

    The gradient of n images has rank n at most in a Linear layer that sees each of them once.

    Args:
        weight: (out, in), as it was sent.
        change: (out, in).
    """
    singular = torch.linalg.svdvals(change.detach().double())
    if not singular.numel() or not bool(singular[0].isfinite()):
        return 0
    rounding = torch.finfo(change.dtype).eps * float(weight.abs().max()) * max(change.shape) ** 0.5
    return int((singular > max(_RANK_SHARE * float(singular[0]), 30 * rounding)).sum())


def _flat(chosen: Mapping[str, Tensor], names: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([chosen[name].detach().double().flatten() for name in sorted(names)])


def _sums_to_zero(bias: Tensor) -> bool:
    total = float(bias.double().abs().sum())
    return total > 0 and abs(float(bias.double().sum())) < 0.01 * total
