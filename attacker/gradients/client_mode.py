"""The model as clients ran it: batch normalisation by the images of the batch, or by the buffers that were sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from attacker.gradients.batch_norm import (
    batch_norms,
    running_buffers,
    with_batch_statistics,
    with_known_statistics,
)
from attacker.gradients.returned_statistics import normalised_by_returned, returned_statistics
from attacker.reasons import Reason
from attacker.victim import Victim
from fl_precode.observation import Observation


@dataclass(frozen=True)
class AsTrained:
    """Observations whose clients ran the model alike.

    Attributes:
        victim: The model as they ran it.
        known: The model as it is known, with its buffers.
        indices: Which observations these are.
        observations: Without buffers that the model, as they ran it, has no use for.
        sent: The same observations with all their buffers.
    """

    victim: Victim
    known: Victim
    indices: Sequence[int]
    observations: Sequence[Observation]
    sent: Sequence[Observation]

    def some(self, places: Sequence[int]) -> AsTrained:
        """Some of the observations, in the given order."""
        return replace(
            self,
            indices=[self.indices[place] for place in places],
            observations=[self.observations[place] for place in places],
            sent=[self.sent[place] for place in places],
        )


def uses_batch_statistics(victim: Victim, observation: Observation) -> bool:
    """Whether a replay normalises by the batch.

    ``protocol.batch_norm`` says how clients trained. Where it says nothing they are taken to train as nearly all code
    does, in training mode: an attack that assumes fixed statistics would fail on them and look like protection. And
    where clients normalised by buffers that were withheld from the attacker, statistics of the candidate's own images
    are the estimate in their place.
    """
    names = batch_norms(victim.model)
    if not names:
        return False
    withheld = any(f"{name}.running_mean" not in observation.buffers for name in names)
    return observation.protocol.batch_norm != "buffers" or withheld


def as_trained(victim: Victim, observations: Sequence[Observation], *, by_returned: bool = False) -> list[AsTrained]:
    """Observations with the model as their clients ran it, those that share it together.

    Args:
        victim: Public knowledge about the model.
        observations: Updates.
        by_returned: Whether candidates are normalised by the returned statistics, and not by their own;
            `why_not_one_batch` has nothing against any of the observations then.
    """
    if by_returned:
        return _by_returned(victim, observations)
    by_batch = [uses_batch_statistics(victim, observation) for observation in observations]
    groups = []
    for batch in (False, True):
        indices = [index for index, value in enumerate(by_batch) if value == batch]
        if not indices:
            continue
        chosen = [observations[index] for index in indices]
        if not batch:
            groups.append(AsTrained(victim, victim, indices, chosen, chosen))
            continue
        changed = replace(victim, model=with_batch_statistics(victim.model))
        idle = running_buffers(victim.model)
        kept = [
            replace(observation, buffers={n: v for n, v in observation.buffers.items() if n not in idle})
            for observation in chosen
        ]
        groups.append(AsTrained(changed, victim, indices, kept, chosen))
    return groups


def _by_returned(victim: Victim, observations: Sequence[Observation]) -> list[AsTrained]:
    groups: dict[frozenset[str], list[int]] = {}  # normalised by their batches in the same layers
    for index, observation in enumerate(observations):
        statistics = returned_statistics(victim.model, observation)
        if isinstance(statistics, Reason):
            raise ValueError(f"nothing to normalise by: {statistics}")
        groups.setdefault(frozenset(statistics), []).append(index)
    return [
        AsTrained(
            replace(victim, model=with_known_statistics(victim.model, names)),
            victim,
            indices,
            [_without_counters(victim, normalised_by_returned(victim.model, observations[i])) for i in indices],
            [observations[i] for i in indices],
        )
        for names, indices in groups.items()
    ]


def _without_counters(victim: Victim, observation: Observation) -> Observation:
    idle = {name for name in running_buffers(victim.model) if name.rpartition(".")[2] == "num_batches_tracked"}
    return replace(observation, buffers={n: v for n, v in observation.buffers.items() if n not in idle})
