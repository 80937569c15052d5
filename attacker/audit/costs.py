"""What attacks cost: measured for one iteration of gradient matching here, and reckoned from it for the others."""

from __future__ import annotations

import time
from collections.abc import Mapping
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
_PROBE = 8


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
        The smaller of two measurements; None where gradient matching does not fit.
    """
    subject = federation.subject
    entries = federation.entries[: chunk_size(federation.entries[0].batch_size)]
    seen = [settings.knowledge.of(subject.tape.load(entry), subject.defence) for entry in entries]
    probe = GradientMatching(iterations=_PROBE)
    if any(probe.refuses(subject.victim, one) is not None for one in seen):
        return None
    torch.set_num_threads(settings.threads)
    victim, seen = placed(subject.victim, seen, torch.device(settings.device))
    taken = []
    for _ in range(3):  # the first one also warms up
        began = time.perf_counter()
        probe(victim, seen, generator=torch.Generator().manual_seed(settings.seed))
        taken.append(time.perf_counter() - began)
    return min(taken[1:]) / _PROBE / len(seen)


def _matching(spec: str) -> GradientMatching | None:
    attack = build_attack(spec)
    found = getattr(attack, "matching", attack)
    return found if isinstance(found, GradientMatching) else None
