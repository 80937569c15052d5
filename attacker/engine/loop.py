"""Inner products by plain double backward, one candidate after another: slow, right for every differentiable model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from attacker.engine.products import GradientProducts, Products, Replay, precise, squared_norms
from fl_precode.observation import Gradients


class LoopProducts(GradientProducts):
    """The oracle: what the research code of the field does, and the fallback where nothing faster is right.

    Args:
        replay: The victim's loss at the weights that all observed gradients belong to.
        targets: Observed gradients, one for each victim.
    """

    def __init__(self, replay: Replay, targets: Sequence[Gradients]) -> None:
        self._replay = replay
        self._targets = targets
        self._target_square = squared_norms(targets)

    def __call__(self, candidates: Tensor, labels: Tensor, noise: Sequence[Tensor] = ()) -> Products:
        """Products for every candidate; see `GradientProducts.__call__`."""
        victims, restarts, batch = candidates.shape[:3]
        labels = labels.expand(victims, restarts, batch)
        pairs = [
            self._one(candidates[v, r], labels[v, r], [value[v, r] for value in noise], self._targets[v])
            for v in range(victims)
            for r in range(restarts)
        ]
        inner = torch.stack([inner for inner, _ in pairs]).reshape(victims, restarts)
        square = torch.stack([square for _, square in pairs]).reshape(victims, restarts)
        return Products(inner=inner, square=square, target=self._target_square)

    def _one(self, x: Tensor, y: Tensor, eps: Sequence[Tensor], target: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        differentiable = torch.is_grad_enabled() and x.requires_grad
        weights = {name: value.detach().requires_grad_(True) for name, value in self._replay.parameters.items()}
        with torch.enable_grad():
            loss = self._replay.loss(weights, x, y, eps)
            found = torch.autograd.grad(
                loss, list(weights.values()), create_graph=differentiable, materialize_grads=True
            )
        inner = torch.stack([precise(g * target[name]).sum() for name, g in zip(weights, found, strict=True)]).sum()
        return inner, torch.stack([precise(g.square()).sum() for g in found]).sum()
