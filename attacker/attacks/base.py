"""The interface of every attack: settings in the constructor, problem at the call, results with named outcomes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import ClassVar, final
from typing import Protocol as TypingProtocol

from torch import Generator, Tensor

from attacker.attacks.half_precision import in_single_precision
from attacker.attacks.randomness import one_for_each
from attacker.gradients.uncompared_parameters import by_first_name, looked_at, only_moving, settled, with_constants
from attacker.reasons import Reason, because, coded, joined
from attacker.victim import Victim
from fl_precode.observation import Observation


class Outcome(StrEnum):
    """Outcome of an attack on one observation; the value is the sentence that a reader sees."""

    CONVERGED = "converged"
    ITERATION_LIMIT = "iteration limit reached"
    DIVERGED = "diverged: the loss or the candidate became non-finite"
    NOT_APPLICABLE = "not applicable"
    FAILED = "failed: it raised an error"


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Result of an attack on one observation. It holds no truth.

    Attributes:
        inputs: (batch, channels, height, width) in the model's normalised scale, or None when there is none.
        labels: (batch,) labels that the attack used or recovered, or None.
        outcome: How the attack ended.
        reason: Why it was not applicable, diverged or failed, or what failed on the way; empty otherwise.
        matching_loss: Gradient distance of ``inputs`` without priors, lower is better; None when not measured.
        seconds: Wall time, the share of this observation.
        iterations: Optimiser steps done; 0 for analytic attacks.
        starting_loss: Distance at the start of the search that is kept, by the measure of ``matching_loss``; None when
            not measured, and for attacks that do not search.
        late_fall: Share by which the distance still fell over the last tenth of that search; None likewise.
        starts: Starts that were compared; 0 for attacks that do not search.
        method: Spec of the member that found it, for attacks that are made of others; empty otherwise.
        noise: What the attack takes for the client's noise, (batch, ...) for each random layer in order of execution;
            empty when it has no opinion.
        cut: Whether a deadline ended it early; ``inputs`` are the best until then.
    """

    inputs: Tensor | None
    labels: Tensor | None
    outcome: Outcome
    reason: str = ""
    matching_loss: float | None = None
    seconds: float = 0.0
    iterations: int = 0
    starting_loss: float | None = None
    late_fall: float | None = None
    starts: int = 0
    method: str = ""
    noise: tuple[Tensor, ...] = ()
    cut: bool = False

    @property
    def reason_codes(self) -> tuple[str, ...]:
        """Codes of `reason` (docs/reference/codes.md), that of the whole first; ``attack-says`` for plain words."""
        return coded(self.reason).codes

    @classmethod
    def not_applicable(cls, reason: str) -> Reconstruction:
        """A result that says why the attack does not fit the observation."""
        return cls(inputs=None, labels=None, outcome=Outcome.NOT_APPLICABLE, reason=reason)


class Progress(TypingProtocol):
    """Receives the share of the work that is done and, where known, the best matching loss so far."""

    def __call__(self, done: float, best: float | None, /) -> None:
        """``done`` in [0, 1]."""


class Attack(ABC):
    """A reconstruction attack. Subclasses are final, frozen, keyword-only dataclasses of settings.

    Attributes:
        registered: What is known of the class, by each name under which `register_attack` registered it.
    """

    # Each is an `AttackEntry`, which says of this class how it is built; here the names alone are of use.
    registered: ClassVar[Mapping[str, object]] = MappingProxyType({})

    @property
    def name(self) -> str:
        """Short name as in the registry and the record."""
        return next(iter(self.registered), type(self).__name__)

    @abstractmethod
    def refuses(self, victim: Victim, observation: Observation) -> str | None:
        """Reason why this attack cannot fit the observation, or None when it can."""

    @abstractmethod
    def run(
        self,
        victim: Victim,
        observations: Sequence[Observation],
        labels: Sequence[Tensor | None],
        generators: Sequence[Generator],
        progress: Progress | None,
    ) -> list[Reconstruction]:
        """Attack observations none of which is refused, one result and one generator each, in order."""

    @final
    def __call__(
        self,
        victim: Victim,
        observations: Sequence[Observation],
        *,
        generator: Generator | Sequence[Generator],
        labels: Sequence[Tensor | None] | None = None,
        progress: Progress | None = None,
    ) -> list[Reconstruction]:
        """Attack many observations at once, those in half precision as float32, frozen parameters as constants.

        Args:
            victim: Public knowledge about the model.
            observations: Updates to attack, of any rounds and nodes.
            generator: Source of all randomness: one for each observation, or a single one, from which each gets its
                own by its place. What is found for an observation depends on its own generator alone.
            labels: Labels that the threat model grants to the attacker, (batch,) for each observation; None means
                that the attack recovers them itself.
            progress: Called now and then with the share done.

        Returns:
            One reconstruction for each observation, in order; those that the attack cannot fit are marked
            ``NOT_APPLICABLE`` with the reason.

        Raises:
            ValueError: If ``labels`` or generators are given for another number of observations.
        """
        granted: Sequence[Tensor | None] = [None] * len(observations) if labels is None else labels
        if len(granted) != len(observations):
            raise ValueError(f"expected labels for {len(observations)} observations, got {len(granted)}")
        generators = one_for_each(generator, len(observations))
        victim, observations = in_single_precision(victim, observations)
        reasons = [self.why_not(victim, observation) for observation in observations]
        results = [Reconstruction.not_applicable(reason or "") for reason in reasons]
        moving = [only_moving(by_first_name(victim.model, observation)) for observation in observations]
        groups: dict[frozenset[str], list[int]] = {}  # with the same constants: one model
        for i in (i for i, reason in enumerate(reasons) if reason is None):
            groups.setdefault(moving[i].frozen, []).append(i)
        for number, (constants, fits) in enumerate(groups.items()):
            updates = [moving[i] for i in fits]
            told = _share(progress, number, len(groups))
            known, sources = [granted[i] for i in fits], [generators[i] for i in fits]
            done = self.run(with_constants(victim, constants), updates, known, sources, told)
            check_results(self, done, victim, len(updates))
            for i, result in zip(fits, done, strict=True):
                results[i] = _with_what_was_left_out(result, observations[i])
        return results

    @final
    def why_not(self, victim: Victim, observation: Observation) -> Reason | None:
        """Reason why the attack cannot be made on an observation as it was recorded, or None when it can."""
        reason = check_observation(victim, observation)
        if reason is not None:
            return reason
        fixed, moving = settled(victim, observation)
        if not moving.parameters:
            return why_nothing_to_match(observation)
        said = self.refuses(fixed, moving)
        return None if said is None else coded(said)


def check_results(attack: Attack, results: object, victim: Victim, observations: int) -> None:
    """Refuse results of an attack that nobody could score: anyone may write one.

    Raises:
        TypeError: If they are no list of reconstructions, or the images are no tensors.
        ValueError: If they are of another number than the observations, or the images are of another shape.
    """
    who = f"the attack {attack.name!r}"
    if not isinstance(results, Sequence) or not all(isinstance(result, Reconstruction) for result in results):
        raise TypeError(f"{who}: expected run() to return a list of Reconstruction, got {type(results).__name__}")
    if len(results) != observations:
        raise ValueError(f"{who}: expected one Reconstruction for each of {observations} updates, got {len(results)}")
    shape = tuple(victim.inputs.shape)
    for entry in results:
        if entry.inputs is None:
            continue
        if not isinstance(entry.inputs, Tensor):
            raise TypeError(f"{who}: expected images as a tensor, got {type(entry.inputs).__name__}")
        if entry.inputs.dim() != 4 or tuple(entry.inputs.shape[1:]) != shape or not entry.inputs.is_floating_point():
            raise ValueError(
                f"{who}: expected images of shape (batch, {', '.join(map(str, shape))}) as the model takes them, got "
                f"{tuple(entry.inputs.shape)} of {entry.inputs.dtype}; return Reconstruction(inputs=None, ...), with a "
                "reason, where there are none"
            )
        if entry.labels is not None and len(entry.labels) != len(entry.inputs):
            raise ValueError(f"{who}: expected a label for each of {len(entry.inputs)} images, got {len(entry.labels)}")


def check_observation(victim: Victim, observation: Observation) -> Reason | None:
    """Why the observation cannot belong to this victim's model, or None.

    A tape of another model, or an update that is not finite, must be named instead of attacked. Frozen parameters
    belong to the model as those do that moved; a victim that has them as buffers already has them all the same.
    """
    observation = by_first_name(victim.model, observation)
    parameters = dict(victim.model.named_parameters())
    frozen = {name: observation.buffers[name] for name in observation.frozen}
    constants = {name: value for name, value in victim.model.named_buffers() if name in frozen}
    expected = {name: tuple(p.shape) for name, p in {**parameters, **constants}.items()}
    observed = {name: tuple(p.shape) for name, p in {**frozen, **observation.parameters}.items()}
    if expected != observed:
        odd = sorted(name for name in expected.keys() | observed.keys() if expected.get(name) != observed.get(name))
        return because("another-model", names=odd[:4])
    broken = [name for name, value in observation.update.items() if not looked_at(value).finite]
    return because("update-not-finite", names=broken[:4]) if broken else None


def why_nothing_to_match(observation: Observation) -> Reason:
    """Why an update has no gradient that attacks could use, when none of its parameters gives equations."""
    if unlike := _complex(observation):
        return because("only-complex-moved", names=", ".join(unlike[:4]))
    if not observation.parameters and not observation.frozen:
        return because("no-parameters")
    return because("nothing-moved")


def _complex(observation: Observation) -> list[str]:
    return [name for name, value in observation.update.items() if value.is_complex()]


def _with_what_was_left_out(result: Reconstruction, observation: Observation) -> Reconstruction:
    """The result, saying which parameters could not be compared because they are complex."""
    unlike = _complex(observation)
    if not unlike:
        return result
    words = because("complex-left-out", names=", ".join(unlike[:4]))
    return replace(result, reason=joined([result.reason, words]))


def _share(progress: Progress | None, number: int, count: int) -> Progress | None:
    """Progress of one of several parts of equal length."""
    if progress is None or count == 1:
        return progress
    return lambda done, best: progress((number + done) / count, best)
