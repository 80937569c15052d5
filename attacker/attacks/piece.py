"""Observations that gradient matching attacks in one go, and how many those may be."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from attacker.attacks.replaying import replayed_at_once
from attacker.engine import Draws, Trace, group_observations
from attacker.victim import Victim
from fl_precode.observation import Gradients, Observation

if TYPE_CHECKING:
    from attacker.attacks.gradient_matching import GradientMatching

# Pairs of L-BFGS for many candidates would fill the memory long before the candidates do: 512 MB in float32.
_HISTORY_NUMBERS_AT_ONCE = 2**27


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Observations that share the shape of the problem.

    Attributes:
        victim: Public knowledge about the model.
        seen: A trace of the model.
        observations: They share weights, buffers and batch size.
        targets: Their gradients.
        labels: (batch,) for each observation, or None for all of them.
        draws: Generators of all candidates.
    """

    victim: Victim
    seen: Trace
    observations: Sequence[Observation]
    targets: Sequence[Gradients]
    labels: Sequence[Tensor] | None
    draws: Draws

    @property
    def batch_size(self) -> int:
        """Images of one candidate."""
        return self.observations[0].batch_size or 1

    @property
    def like(self) -> Tensor:
        """A tensor that says dtype and device of the candidates."""
        return next(iter(self.observations[0].parameters.values()))


def pieces(
    settings: GradientMatching,
    victim: Victim,
    seen: Trace,
    observations: Sequence[Observation],
    labels: Sequence[Tensor | None],
) -> Iterator[list[int]]:
    """Indices to attack together; observations without labels only where labels are optimised jointly."""
    for labelled in (True, False) if settings.labels == "joint" else (True,):
        fits = [index for index, value in enumerate(labels) if (value is not None) == labelled]
        for group in group_observations([observations[index] for index in fits]):
            batch_size = observations[fits[group[0]]].batch_size or 1
            at_once = replayed_at_once(settings, victim, seen, observations[fits[group[0]]])
            if settings.history:
                numbers = 2 * settings.history * batch_size * math.prod(victim.inputs.shape)
                at_once = min(at_once, _HISTORY_NUMBERS_AT_ONCE // numbers)
            victims = max(1, at_once // settings.restarts)
            for first in range(0, len(group), victims):
                yield [fits[index] for index in group[first : first + victims]]
