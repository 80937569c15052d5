"""Inner products by plain double backward, one candidate after another: slow, right for every differentiable model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import copy
from typing import Self

import torch
from torch import Tensor

from attacker.gradients.base import GradientProducts, Products, matched_names, squared_norms
from attacker.gradients.replay import Replay, by_victim
from attacker.optim.double_precision import precise
from fl_precode.observation import Gradients


class LoopProducts(GradientProducts):
    """The oracle: what the research code of the field does, and the fallback where nothing faster is right.

    Args:
        replay: The victim's loss at the weights that the observed gradients belong to: one for all victims, or one for
            each victim.
        targets: Observed gradients, one for each victim.
        matched: Names of the parameters that count in the products; None for all.
    """

    def __init__(
        self,
        replay: Replay | Sequence[Replay],
        targets: Sequence[Gradients],
        *,
        matched: Collection[str] | None = None,
    ) -> None:
        self._matched = matched_names(targets[0], matched)
        self._replays = by_victim(replay, len(targets))
        self._targets = targets
        self._target_square = squared_norms(targets, self._matched)

    def __call__(self, candidates: Tensor, labels: Tensor, noise: Sequence[Tensor] = ()) -> Products:
        """Products for every candidate; see `GradientProducts.__call__`."""
        victims, restarts, batch = candidates.shape[:3]
        labels = labels.expand(victims, restarts, batch)
        pairs = [
            self._one(v, candidates[v, r], labels[v, r], [value[v, r] for value in noise])
            for v in range(victims)
            for r in range(restarts)
        ]
        inner = torch.stack([inner for inner, _ in pairs]).reshape(victims, restarts)
        square = torch.stack([square for _, square in pairs]).reshape(victims, restarts)
        return Products(inner=inner, square=square, target=self._target_square)

    def keep(self, victims: Sequence[int], restarts: Sequence[Sequence[int]] | None = None) -> Self:
        """Products for some of the victims; see `GradientProducts.keep`."""
        del restarts
        kept = copy(self)
        kept._replays = [self._replays[index] for index in victims]
        kept._targets = [self._targets[index] for index in victims]
        kept._target_square = self._target_square[list(victims)]
        return kept

    def _one(self, victim: int, x: Tensor, y: Tensor, eps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        replay, target = self._replays[victim], self._targets[victim]
        differentiable = torch.is_grad_enabled() and x.requires_grad
        weights = {name: replay.parameters[name].detach().requires_grad_(True) for name in self._matched}
        with torch.enable_grad():
            loss = replay.loss({**replay.parameters, **weights}, x, y, eps)
            gradients = torch.autograd.grad(
                loss, list(weights.values()), create_graph=differentiable, materialize_grads=True
            )
        inner = torch.stack([precise(g * target[name]).sum() for name, g in zip(weights, gradients, strict=True)]).sum()
        return inner, torch.stack([precise(g.square()).sum() for g in gradients]).sum()
