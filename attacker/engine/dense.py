"""Inner products from gradients that are really formed, for all candidates at once by ``vmap``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import copy
from typing import Self

import torch
from torch import Tensor
from torch.func import grad, vmap

from attacker.engine.products import (
    GradientProducts,
    Products,
    Replay,
    by_victim,
    matched_names,
    precise,
    squared_norms,
)
from fl_precode.observation import Gradients


class DenseProducts(GradientProducts):
    """Per-candidate gradients through ``vmap(grad)``; memory grows with candidates times parameters.

    Right as far as torch's batching rules are: the second derivatives of LayerNorm and InstanceNorm are wrong with
    torch 2.15. Take it from `attacker.engine.choose.gradient_products`, which compares first.

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
        names = matched_names(targets[0], matched)
        self._replays = by_victim(replay, len(targets))
        self._targets = {name: torch.stack([one[name] for one in targets]) for name in names}
        self._target_square = squared_norms(targets, names)

    def __call__(self, candidates: Tensor, labels: Tensor, noise: Sequence[Tensor] = ()) -> Products:
        """Products for every candidate; see `GradientProducts.__call__`."""
        victims, restarts, batch = candidates.shape[:3]
        labels = labels.expand(victims, restarts, batch)

        if all(replay is self._replays[0] for replay in self._replays):
            eps = [value.flatten(0, 1) for value in noise]
            gradients = self._gradients(self._replays[0], candidates.flatten(0, 1), labels.flatten(0, 1), eps)
        else:  # exact, but without the gain of one pass
            each = [
                self._gradients(replay, candidates[v], labels[v], [value[v] for value in noise])
                for v, replay in enumerate(self._replays)
            ]
            gradients = {name: torch.cat([one[name] for one in each]) for name in self._targets}
        inner = square = precise(candidates.new_zeros(victims, restarts))
        for name, target in self._targets.items():
            g = gradients[name].reshape(victims, restarts, -1)
            inner = inner + precise(g * target.reshape(victims, 1, -1)).sum(-1)
            square = square + precise(g.square()).sum(-1)
        return Products(inner=inner, square=square, target=self._target_square)

    def keep(self, victims: Sequence[int], restarts: Sequence[Sequence[int]] | None = None) -> Self:
        """Products for some of the victims; see `GradientProducts.keep`."""
        del restarts
        kept = copy(self)
        kept._replays = [self._replays[index] for index in victims]
        kept._targets = {name: value[list(victims)] for name, value in self._targets.items()}
        kept._target_square = self._target_square[list(victims)]
        return kept

    def _gradients(self, replay: Replay, x: Tensor, y: Tensor, noise: list[Tensor]) -> dict[str, Tensor]:
        """Gradient of every candidate, (candidates, ...) by name, for ``x`` (candidates, batch, ...)."""

        def loss(weights: Mapping[str, Tensor], one: Tensor, labels: Tensor, eps: list[Tensor]) -> Tensor:
            return replay.loss({**replay.parameters, **weights}, one, labels, eps)

        per_candidate = vmap(grad(loss), in_dims=(None, 0, 0, 0), randomness="different")
        weights = {name: replay.parameters[name] for name in self._targets}
        found: dict[str, Tensor] = per_candidate(weights, x, y, noise)
        return found
