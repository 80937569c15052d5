"""Base of attacks that match gradients with more knowledge than a plain attack has."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Generator, Tensor

from attacker.attacks.announced_update import UpdateComparison, announced_comparison
from attacker.attacks.base import Attack, Progress, Reconstruction
from attacker.attacks.gradient_matching.attack import GradientMatching
from attacker.attacks.gradient_matching.memory import share
from attacker.attacks.gradient_matching.options import options_of
from attacker.attacks.gradient_matching.parts import Adam
from attacker.attacks.known_labels import known_labels
from attacker.attacks.label_trial import labels_to_try
from attacker.attacks.numbers_left import FILTERS
from attacker.attacks.side_information import NoiseSearch, SideInformation
from attacker.gradients.trace import Trace, trace
from attacker.optim.deadline import share_of_time
from attacker.reasons import Reason, because, joined
from attacker.victim import Victim
from fl_precode.observation import Observation


@dataclass(frozen=True, kw_only=True)
class AdaptiveMatching(Attack):
    """Gradient matching that knows something about each update, and decides what to make of noise.

    Attributes:
        matching: Settings of the search; of Adam, with labels granted or recovered.
        announced: Whether the distance, and the numbers that count in it, follow what was announced of the update
            (`announced_comparison`); else the settings' own distance counts, over all of them.

    Raises:
        ValueError: If the search is another.
    """

    matching: GradientMatching = field(default_factory=GradientMatching)
    announced: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.matching.optimiser, Adam):
            got = options_of(self.matching)
            raise ValueError(
                f"{self.name} searches by Adam with labels that are granted or recovered; expected optimiser='adam' "
                f"and labels='recovered', got {got['optimiser']!r} and {got['labels']!r}"
            )
        _ = self.noise_search  # its settings are checked when it is made

    @property
    @abstractmethod
    def noise_search(self) -> NoiseSearch:
        """What the attack makes of noise that it does not know."""

    @abstractmethod
    def knowledge(self, victim: Victim, model_trace: Trace, observation: Observation) -> SideInformation | Reason:
        """What the attack knows of an observation, or why it cannot know it."""

    def adapted(self, victim: Victim) -> Victim:
        """The victim in whose place the attack replays another; by default itself."""
        return victim

    def refuses(self, victim: Victim, observation: Observation) -> Reason | None:
        """Reason why the attack cannot fit the observation, or None when it can."""
        changed = self.adapted(victim)
        known = self._known(changed, trace(changed), observation)
        if isinstance(known, Reason):
            return known
        reason = self._compared_by(known.distance).refuses(victim, known.observation)
        matched = known.knowledge.matched
        if reason is None and matched is not None:
            silent = not any(bool((observation.update[name] != 0).any()) for name in matched)
            reason = because("no-direction") if silent else None
        return reason

    def run(
        self,
        victim: Victim,
        observations: Sequence[Observation],
        labels: Sequence[Tensor | None],
        generators: Sequence[Generator],
        progress: Progress | None,
    ) -> list[Reconstruction]:
        """Search with what is known of each observation, those together that are compared by the same distance."""
        changed = self.adapted(victim)
        model_trace = trace(changed)
        every = [self._known(changed, model_trace, observation) for observation in observations]
        known = {
            index: entry for index, entry in enumerate(every) if isinstance(entry, _Known)
        }  # others were refused before
        reconstructions: dict[int, Reconstruction] = {}
        distances = list(dict.fromkeys(entry.distance for entry in known.values()))
        for number, distance in enumerate(distances):
            indices = [index for index, entry in known.items() if entry.distance == distance]
            with share_of_time(number, len(distances)):
                results = self._compared_by(distance).search(
                    changed,
                    [known[index].observation for index in indices],
                    [
                        _labels(changed, observations[index], known[index], labels[index], generators[index])
                        for index in indices
                    ],
                    [generators[index] for index in indices],
                    share(progress, number, len(distances)),
                    [known[index].knowledge for index in indices],
                    self.noise_search,
                )
            reconstructions.update(zip(indices, results, strict=True))
        return [_explained(reconstructions[index], entry) for index, entry in known.items()]

    def _compared_by(self, distance: str) -> GradientMatching:
        return replace(self.matching, distance=self.matching.distance.named(distance))

    def _known(self, victim: Victim, model_trace: Trace, observation: Observation) -> _Known | Reason:
        """All that the attack knows of an observation: of the model's defence, and of the update's."""
        model_knowledge = self.knowledge(victim, model_trace, observation)
        if isinstance(model_knowledge, Reason):
            return model_knowledge
        fits = announced_comparison(observation, model_trace) if self.announced else None
        if isinstance(fits, Reason):
            return fits
        if fits is None or not fits.parts:
            return _Known(observation=observation, distance=self.matching.distance.name, knowledge=model_knowledge)
        return _joined(model_knowledge, fits)


@dataclass(frozen=True, kw_only=True)
class _Known:
    """An observation as it is compared, by which distance, for which parts of its defence, and what is known of it."""

    observation: Observation
    distance: str
    knowledge: SideInformation
    parts: tuple[str, ...] = ()


def _labels(
    victim: Victim, sent: Observation, known: _Known, granted: Tensor | None, generator: Generator
) -> Tensor | None:
    """Labels for a search that compares a part of what was sent: they are read off the whole of it.

    A filter that cuts large numbers cuts those of the labels first, and leaves their signs. Where labels are to be
    found by trial, that is left to the search.
    """
    if granted is not None or not FILTERS & set(known.parts):
        return granted
    ((found, _),) = known_labels(victim, [sent], [None], [generator])
    return None if sent.batch_size is None or labels_to_try(victim, sent, found) else found


def _joined(knowledge: SideInformation, fits: UpdateComparison) -> _Known | Reason:
    matched = knowledge.matched
    if fits.left_out:
        every = frozenset(fits.observation.parameters) if matched is None else matched
        matched = every - fits.left_out
        if not matched:
            return because("defence-leaves-nothing", defence=fits.observation.protocol.defence)
    return _Known(
        observation=fits.observation,
        distance=fits.distance,
        parts=fits.parts,
        knowledge=replace(knowledge, matched=matched, units=fits.units),
    )


def _explained(result: Reconstruction, known: _Known) -> Reconstruction:
    """The result, whose reason names the distance that the announcement chose."""
    words = because("distance-chosen", distance=known.distance) if known.parts else ""
    return replace(result, reason=joined([words, result.reason]))
