"""What attacks cost: measured for one iteration of gradient matching here, and reckoned from it for the others."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import torch

from attacker.attacks.gradient_matching import GradientMatching
from attacker.attacks.portfolio import Portfolio
from attacker.attacks.registry import build_attack
from attacker.audit.chunk import chunk_size
from attacker.audit.placement import placed

if TYPE_CHECKING:
    from attacker.audit.scope import Federation
    from attacker.audit.settings import AuditSettings
    from attacker.victim import Victim
    from fl_precode.observation import Observation

_logger = logging.getLogger(__name__)

FIXED: Final[Mapping[str, float]] = MappingProxyType(
    {
        "first-layer": 2.0,
        "through-bottleneck": 150.0,
        "layerwise-inversion": 150.0,
        "hybrid": 300.0,
        "then-refine": 700.0,
        "spear": 3_000.0,
    }
)
"""Attacks that do not search for a number of iterations: their cost in iterations of gradient matching, measured on the
LeNet (the last one reckoned). On other models it is a guess."""

_BY_METHOD: Final[Mapping[str, float]] = MappingProxyType({"dlg": 1.5, "idlg": 1.2, "noise-restoring": 1.3})
_UNKNOWN = 1_000.0
_PROBES: Final = (4, 24)
_LONG: Final = 1.0
"""Seconds from which one iteration is measured once: what comes before it is little then, and more would last."""
_FEW_IMAGES: Final = 8
"""Images of one update up to which an iteration is measured as it is."""


def searches_for(spec: str) -> int | None:
    """Iterations of one search, or None for attacks that do not search.

    >>> searches_for("dlg:iterations=9"), searches_for("first-layer")
    (9, None)
    """
    settings = _matching(spec)
    return None if settings is None else settings.iterations


def cost(spec: str) -> float:
    """Cost of an attack on one update, in iterations of gradient matching by one candidate."""
    name = spec.partition(":")[0]
    if name in FIXED:
        return FIXED[name]
    attack = build_attack(spec)
    if isinstance(attack, Portfolio):
        return sum(cost(member.method) for member in attack.members)
    settings = _matching(spec)
    if settings is None:
        return _UNKNOWN
    return settings.iterations * settings.restarts * _BY_METHOD.get(name, 1.0)


def measure_unit(federation: Federation, settings: AuditSettings) -> float | None:
    """Seconds of one iteration of gradient matching for one update, in a chunk as the audit cuts them.

    Returns:
        Measured by a few iterations more and less; None where gradient matching does not fit, or fails.
    """
    subject = federation.subject
    entries = federation.entries[: chunk_size(federation.targets[0].batch_size)]
    seen = [settings.knowledge.of(subject.tape.load(entry), subject.defence) for entry in entries]
    probes = [GradientMatching(iterations=count) for count in _PROBES]
    images = federation.targets[0].batch_size or 1
    try:
        if images > _FEW_IMAGES:
            return _reckoned(subject.victim, seen[0], images, settings)
        return _measured(subject.victim, seen, probes, settings)
    except Exception:  # models are foreign code; an attack that cannot run says so when it is run
        _logger.warning("what an iteration costs could not be measured", exc_info=True)
        return None


def _measured(
    victim: Victim, seen: Sequence[Observation], probes: Sequence[GradientMatching], settings: AuditSettings
) -> float | None:
    if any(probes[0].why_not(victim, one) is not None for one in seen):
        return None
    torch.set_num_threads(settings.threads)
    victim, seen = placed(victim, seen, torch.device(settings.device))
    once = _seconds(GradientMatching(iterations=1), victim, seen[:1], settings.seed)
    if once > _LONG:
        return once
    times = [[_seconds(probe, victim, seen, settings.seed) for probe in probes] for _ in range(3)]
    # What an attack does before its first iteration is in both; other processes only ever make it slower.
    short, long = (min(taken) for taken in zip(*times, strict=True))
    return float(max(long - short, long / 10) / (_PROBES[1] - _PROBES[0]) / len(seen))


def _reckoned(victim: Victim, seen: Observation, images: int, settings: AuditSettings) -> float | None:
    """Seconds of an iteration on many images, from one on a few of them: a replay takes as long as its images do.

    The few make as many local steps a pass as they fill; a federation of thousands of images would otherwise be
    replayed dozens of times before anything is said.
    """
    few = replace(seen, batch_size=_FEW_IMAGES)
    probe = GradientMatching(iterations=1)
    if probe.why_not(victim, seen) is not None or probe.why_not(victim, few) is not None:
        return None
    torch.set_num_threads(settings.threads)
    victim, placed_few = placed(victim, [few], torch.device(settings.device))
    return _seconds(probe, victim, placed_few, settings.seed) * images / _FEW_IMAGES


def _seconds(probe: GradientMatching, victim: Victim, seen: Sequence[Observation], seed: int) -> float:
    # A processor's own time is that of the budget, whatever else the machine does meanwhile; a GPU is waited for.
    on_gpu = next(iter(seen[0].parameters.values())).is_cuda
    clock = time.perf_counter if on_gpu else time.process_time
    began = clock()
    probe(victim, seen, generator=torch.Generator().manual_seed(seed))
    return clock() - began


def _matching(spec: str) -> GradientMatching | None:
    attack = build_attack(spec)
    found = getattr(attack, "matching", attack)
    return found if isinstance(found, GradientMatching) else None
