"""What attacks share that match gradients with more knowledge than a plain attack has."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Generator, Tensor

from attacker.attacks.adaptation import Knowledge, NoiseSearch
from attacker.attacks.attack import Attack, Progress, Reconstruction
from attacker.attacks.gradient_matching import GradientMatching
from attacker.engine import Trace, trace
from attacker.victim import Victim
from fl_precode.observation import Observation

NO_BOTTLENECK = "the model has no variational bottleneck, and without one this is inverting-gradients"


@dataclass(frozen=True, kw_only=True)
class AdaptiveMatching(Attack):
    """Gradient matching that knows something about each update, and decides what to make of noise.

    Attributes:
        matching: Settings of the search; of Adam, with labels granted or recovered.

    Raises:
        ValueError: If the search is another.
    """

    matching: GradientMatching = field(default_factory=GradientMatching)

    def __post_init__(self) -> None:
        if self.matching.optimiser != "adam" or self.matching.labels != "recovered":
            raise ValueError(
                f"{self.name} searches by Adam with labels that are granted or recovered; expected optimiser='adam' "
                f"and labels='recovered', got {self.matching.optimiser!r} and {self.matching.labels!r}"
            )
        _ = self.noise_search  # its settings are checked when it is made

    @property
    @abstractmethod
    def noise_search(self) -> NoiseSearch:
        """What the attack makes of noise that it does not know."""

    @abstractmethod
    def knowledge(self, victim: Victim, seen: Trace, observation: Observation) -> Knowledge | str:
        """What the attack knows of an observation, or why it cannot know it."""

    def adapted(self, victim: Victim) -> Victim:
        """The victim in whose place the attack replays another; by default itself."""
        return victim

    def refuses(self, victim: Victim, observation: Observation) -> str | None:
        """Why the attack cannot fit the observation, or None when it can."""
        changed = self.adapted(victim)
        known = self.knowledge(changed, trace(changed), observation)
        if isinstance(known, str):
            return known
        reason = self.matching.refuses(victim, observation)
        if reason is None and known.matched is not None:
            silent = not any(bool((observation.update[name] != 0).any()) for name in known.matched)
            reason = "the update is zero everywhere that counts: it has no direction to match" if silent else None
        return reason

    def run(
        self,
        victim: Victim,
        observations: Sequence[Observation],
        labels: Sequence[Tensor | None],
        generators: Sequence[Generator],
        progress: Progress | None,
    ) -> list[Reconstruction]:
        """Search with what is known of each observation."""
        if not observations:
            return []
        changed = self.adapted(victim)
        seen = trace(changed)
        known = [self.knowledge(changed, seen, one) for one in observations]
        certain = [one for one in known if isinstance(one, Knowledge)]  # the others were refused before
        return self.matching.search(changed, observations, labels, generators, progress, certain, self.noise_search)
