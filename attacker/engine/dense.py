"""Inner products from gradients that are really formed, for all candidates at once by ``vmap``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.func import grad, vmap

from attacker.engine.products import GradientProducts, Products, Replay, precise, squared_norms
from fl_precode.observation import Gradients


class DenseProducts(GradientProducts):
    """Per-candidate gradients through ``vmap(grad)``; memory grows with candidates times parameters.

    Right as far as torch's batching rules are: the second derivatives of LayerNorm and InstanceNorm are wrong with
    torch 2.15. Take it from `attacker.engine.choose.gradient_products`, which compares first.

    Args:
        replay: The victim's loss at the weights that all observed gradients belong to.
        targets: Observed gradients, one for each victim.
    """

    def __init__(self, replay: Replay, targets: Sequence[Gradients]) -> None:
        self._replay = replay
        self._targets = {name: torch.stack([one[name] for one in targets]) for name in targets[0]}
        self._target_square = squared_norms(targets)

    def __call__(self, candidates: Tensor, labels: Tensor, noise: Sequence[Tensor] = ()) -> Products:
        """Products for every candidate; see `GradientProducts.__call__`."""
        victims, restarts, batch = candidates.shape[:3]
        labels = labels.expand(victims, restarts, batch)

        def loss(weights: Mapping[str, Tensor], x: Tensor, y: Tensor, eps: list[Tensor]) -> Tensor:
            return self._replay.loss(weights, x, y, eps)

        per_candidate = vmap(grad(loss), in_dims=(None, 0, 0, 0), randomness="different")
        gradients = per_candidate(
            dict(self._replay.parameters),
            candidates.flatten(0, 1),
            labels.flatten(0, 1),
            [eps.flatten(0, 1) for eps in noise],
        )
        inner = square = precise(candidates.new_zeros(victims, restarts))
        for name, target in self._targets.items():
            g = gradients[name].reshape(victims, restarts, -1)
            inner = inner + precise(g * target.flatten(1).unsqueeze(1)).sum(-1)
            square = square + precise(g.square()).sum(-1)
        return Products(inner=inner, square=square, target=self._target_square)
