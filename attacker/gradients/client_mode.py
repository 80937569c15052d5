"""The model as clients ran it: batch normalisation by the images of the batch, or by the buffers that were sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from attacker.gradients.batch_norm import batch_norms, running_buffers, with_batch_statistics
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


def as_trained(victim: Victim, observations: Sequence[Observation]) -> list[AsTrained]:
    """Observations with the model as their clients ran it, those that share it together."""
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
