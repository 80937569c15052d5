"""Costs of attacks: measured for one iteration of gradient matching here, and computed from it for the others."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import torch

from attacker.attacks.base import Attack
from attacker.attacks.gradient_matching.attack import GradientMatching
from attacker.attacks.gradient_matching.parts import Adam
from attacker.attacks.portfolio import Portfolio
from attacker.attacks.registry import ATTACKS, AttackEntry, build_attack, entry_of
from attacker.attacks.statistics_only import StatisticsOnly
from attacker.audit.execution.attack_job import chunk_size
from attacker.audit.execution.device import placed
from attacker.audit.execution.passes import replayed_images, seconds_of_pass
from attacker.optim.deadline import within
from fl_precode.spec import spec_name

if TYPE_CHECKING:
    from attacker.audit.federations.federation import AuditedFederation
    from attacker.audit.settings import AuditSettings
    from attacker.victim import Victim
    from fl_precode.observation import Observation

_logger = logging.getLogger(__name__)

_UNKNOWN = 1_000.0
_WATCHED: Final = 25
"""Iterations of a search that are watched."""

_PASSES: Final = 4.0
"""Passes that an iteration takes about as long as: the gradient of a gradient's distance."""

_BEFORE_A_SEARCH: Final = 12.0
"""Iterations that ways of forming gradients, which are compared before the first one, take about as long as."""


def replays(spec: str) -> bool:
    """Whether an attack replays all steps of an update; of formulas each costs what it does for one step.

    >>> replays("dlg:iterations=9"), replays("first-layer")
    (True, False)
    """
    return not entry_of(spec).exact


def searches_for(spec: str) -> int | None:
    """Iterations of one search, or None for attacks that do not search.

    >>> searches_for("dlg:iterations=9"), searches_for("first-layer")
    (9, None)
    """
    attack = build_attack(spec)
    settings = _matching_of(attack)
    if settings is None:
        return attack.iterations if isinstance(attack, StatisticsOnly) else None
    return settings.optimiser.iterations


def cost(spec: str) -> float:
    """Cost of an attack on one update, in iterations of gradient matching by one candidate."""
    return _cost(entry_of(spec), build_attack(spec))


def _cost(entry: AttackEntry | None, attack: Attack) -> float:
    if entry is not None and entry.cost is not None:
        return entry.cost
    if isinstance(attack, Portfolio):
        return sum(_cost(ATTACKS.get(spec_name(member.method)), member.attack) for member in attack.members)
    evaluations: int | None = getattr(_matching_of(attack) or attack, "evaluations", None)
    if evaluations is None:
        return _UNKNOWN
    return evaluations * (1.0 if entry is None else entry.cost_of_iteration)


def measure_unit(federation: AuditedFederation, settings: AuditSettings, seconds: float = 10.0) -> float | None:
    """Seconds of one iteration of gradient matching for one update, in a chunk as the audit cuts them.

    One pass forward and backward on a few images comes first, from which an iteration can be reckoned whatever the
    model and however many steps are replayed. Where that says that there is time for it, a real search is watched
    until its time is over: small models cost what surrounds their passes.

    Args:
        federation: Whose updates are attacked.
        settings: Settings of the audit.
        seconds: That measuring may take.

    Updates of a number of images that is not known count as those of one: no search fits them, but formulas do, and
    what these cost is told in the same unit.

    Returns:
        The time on the clock on the wall, as the budget counts it; None where gradient matching does not fit, or fails.
    """
    subject = federation.subject
    entries = federation.entries[: chunk_size(federation.targets[0].batch_size)]
    probe = GradientMatching(optimiser=Adam(iterations=_WATCHED))
    with within(seconds) as deadline:
        try:
            observations = [
                _of_some_size(settings.knowledge.of(subject.tape.load(entry), subject.defence)) for entry in entries
            ]
            if any(probe.why_not(subject.victim, observation) is not None for observation in observations):
                return None
            torch.set_num_threads(settings.threads)
            victim, observations = placed(subject.victim, observations, torch.device(settings.device))
            reckoned = seconds_of_pass(victim, observations[0]) * _PASSES * replayed_images(observations[0])
            if reckoned * len(observations) * _BEFORE_A_SEARCH > deadline.left:
                return reckoned
            return _watched(victim, observations, probe, settings) or reckoned
        except Exception:  # models are foreign code; an attack that cannot run says so when it is run
            _logger.warning("what an iteration costs could not be measured", exc_info=True)
            return None


def _of_some_size(observation: Observation) -> Observation:
    return replace(observation, batch_size=1) if observation.batch_size is None else observation


def _watched(
    victim: Victim, observations: Sequence[Observation], probe: GradientMatching, settings: AuditSettings
) -> float | None:
    """Seconds of an iteration of one update, from the moments at which a search's own loop looked at the clock."""
    with within(math.inf) as watch:
        probe(victim, observations, generator=torch.Generator().manual_seed(settings.seed))
    looks = watch.looks
    gaps = [(later[0] - earlier[0]) / later[1] for earlier, later in zip(looks, looks[1:], strict=False)]
    # What an attack does before its first iteration is in none; other processes only ever make one slower.
    return statistics.median(gaps) if gaps else None


def _matching_of(attack: Attack) -> GradientMatching | None:
    matching = getattr(attack, "matching", attack)
    return matching if isinstance(matching, GradientMatching) else None
