"""Observations that gradient matching attacks in one go, and how much of them fits into the memory."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import product

from torch import Tensor

from attacker.attacks.side_information import PLAIN, NoiseSearch, SideInformation
from attacker.gradients.client_mode import AsTrained
from attacker.gradients.observed import group_observations, same_weights
from attacker.gradients.trace import Trace
from attacker.optim.random_streams import Draws
from attacker.victim import Victim
from fl_precode.observation import Gradients, Observation


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Candidates that share the shape of the problem.

    Attributes:
        victim: Public knowledge about the model.
        seen: A trace of the model.
        indices: Which of the attack's observations these are.
        known: The model as it is known, with its buffers, where clients ran it otherwise.
        sent: The observations with all the buffers that were sent.
        observations: They share kind, protocol and batch size; weights and buffers too unless ``own_weights``.
        targets: Their gradients.
        labels: (batch,) for each observation, or None for all of them.
        draws: Generators of all candidates.
        knowledge: What is known of each observation, of one kind.
        noise: What the attack makes of noise.
        own_weights: Whether the observations were taken at different weights.
    """

    victim: Victim
    seen: Trace
    indices: Sequence[int]
    known: Victim
    sent: Sequence[Observation]
    observations: Sequence[Observation]
    targets: Sequence[Gradients]
    labels: Sequence[Tensor] | None
    draws: Draws
    knowledge: Sequence[SideInformation]
    noise: NoiseSearch = PLAIN
    own_weights: bool = False

    @property
    def batch_size(self) -> int:
        """Images of one candidate."""
        return self.observations[0].batch_size or 1

    @property
    def like(self) -> Tensor:
        """A tensor that says dtype and device of the candidates."""
        return next(iter(self.observations[0].parameters.values()))

    def part(self, victims: range, restarts: range) -> Piece:
        """Some victims and restarts, with their draws from the beginning."""
        return replace(
            self,
            indices=[self.indices[index] for index in victims],
            sent=[self.sent[index] for index in victims],
            observations=[self.observations[index] for index in victims],
            targets=[self.targets[index] for index in victims],
            knowledge=[self.knowledge[index] for index in victims],
            labels=None if self.labels is None else [self.labels[index] for index in victims],
            draws=self.draws.keep(victims, [restarts] * len(victims)).afresh(),
            own_weights=self.own_weights and len(victims) > 1,
        )

    def within(self, candidates: int, *, whole_victims: bool = False) -> list[Piece]:
        """Parts of a limited number of candidates: victims apart first, then a victim's restarts.

        With ``whole_victims`` restarts stay together, which may be more candidates.
        """
        victims, restarts = self.draws.axes
        if whole_victims:
            candidates = max(candidates, restarts)
        together, apart = max(1, candidates // restarts), min(restarts, candidates)
        return [
            self.part(range(v, min(v + together, victims)), range(r, min(r + apart, restarts)))
            for v in range(0, victims, together)
            for r in range(0, restarts, apart)
        ]


def group_pieces(
    clients: AsTrained,
    model_trace: Trace,
    targets: Sequence[Gradients],
    labels: Sequence[Tensor | None],
    draws: Draws,
    *,
    knowledge: Sequence[SideInformation],
    noise: NoiseSearch,
    joint: bool,
    may_differ: Collection[str] | None,
) -> list[Piece]:
    """Observations that are one problem together; without labels only when ``joint``.

    Args:
        clients: Updates of clients that ran the model alike.
        model_trace: A trace of the model as they ran it.
        targets: Their gradients.
        labels: (batch,) for each observation, or None.
        draws: Generators of all candidates.
        knowledge: Knowledge about each observation.
        noise: What the attack makes of noise.
        joint: Whether labels that are not known are optimised.
        may_differ: As for `group_observations`.
    """
    pieces, observations = [], clients.observations
    for labelled, kind in product(
        (True, False) if joint else (True,), dict.fromkeys(entry.kind for entry in knowledge)
    ):
        fits = [
            index
            for index, value in enumerate(labels)
            if (value is not None) == labelled and knowledge[index].kind == kind
        ]
        for group in group_observations([observations[index] for index in fits], may_differ=may_differ):
            indices = [fits[index] for index in group]
            known = [value for value in (labels[index] for index in indices) if value is not None]
            pieces.append(
                Piece(
                    victim=clients.victim,
                    known=clients.known,
                    sent=[clients.sent[index] for index in indices],
                    seen=model_trace,
                    indices=indices,
                    observations=[observations[index] for index in indices],
                    targets=[targets[index] for index in indices],
                    labels=known or None,
                    draws=draws.keep(indices, [range(draws.axes[1])] * len(indices)),
                    knowledge=[knowledge[index] for index in indices],
                    noise=noise,
                    own_weights=not all(same_weights(observations[indices[0]], observations[i]) for i in indices),
                )
            )
    return pieces
