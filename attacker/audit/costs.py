"""What attacks cost: measured for one iteration of gradient matching here, and reckoned from it for the others."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import torch

from attacker.attacks.gradient_matching import GradientMatching
from attacker.attacks.portfolio import Portfolio
from attacker.attacks.registry import build_attack
from attacker.audit.chunk import chunk_size
from attacker.audit.placement import placed
from attacker.engine import Replay

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
_LONG: Final = 0.2
"""Seconds of an iteration from which it is reckoned from one pass: dozens of iterations would last too long."""
_FEW_IMAGES: Final = 8
"""Images of one update on which a pass is measured."""


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
    return settings.evaluations * _BY_METHOD.get(name, 1.0)


def measure_unit(federation: Federation, settings: AuditSettings) -> float | None:
    """Seconds of one iteration of gradient matching for one update, in a chunk as the audit cuts them.

    Returns:
        Measured by a few iterations more and less; None where gradient matching does not fit, or fails.
    """
    subject = federation.subject
    entries = federation.entries[: chunk_size(federation.targets[0].batch_size)]
    seen = [settings.knowledge.of(subject.tape.load(entry), subject.defence) for entry in entries]
    probes = [GradientMatching(iterations=count) for count in _PROBES]
    try:
        if any(probes[0].why_not(subject.victim, one) is not None for one in seen):
            return None
        torch.set_num_threads(settings.threads)
        victim, seen = placed(subject.victim, seen, torch.device(settings.device))
        long = _by_one_pass(victim, seen[0])
        return long if long > _LONG else _measured(victim, seen, probes, settings)
    except Exception:  # models are foreign code; an attack that cannot run says so when it is run
        _logger.warning("what an iteration costs could not be measured", exc_info=True)
        return None


def _by_one_pass(victim: Victim, seen: Observation) -> float:
    """Seconds of an iteration, reckoned from one pass forward and backward on a few of the images.

    The gradient of a gradient's distance takes about as long as four such passes, and every image and epoch as long as
    any other. Attacks compare ways of forming gradients before their first iteration, which takes minutes where a pass
    takes seconds: what an iteration costs must not wait for that.
    """
    images = seen.batch_size or 1
    few = min(images, _FEW_IMAGES)
    like = next(iter(seen.parameters.values()))
    candidates = torch.zeros(few, *victim.inputs.shape, dtype=like.dtype, device=like.device)
    labels = torch.zeros(few, dtype=torch.long, device=like.device)
    weights = {name: value.detach().clone().requires_grad_(True) for name, value in seen.parameters.items()}
    clock, began = _clock(seen)
    loss = Replay(victim, weights, seen.buffers).loss(weights, candidates, labels, ())
    torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    return 4 * (clock() - began) * (images / few) * (seen.protocol.local_epochs or 1)


def _measured(
    victim: Victim, seen: Sequence[Observation], probes: Sequence[GradientMatching], settings: AuditSettings
) -> float:
    times = [[_seconds(probe, victim, seen, settings.seed) for probe in probes] for _ in range(3)]
    # What an attack does before its first iteration is in both; other processes only ever make it slower.
    short, long = (min(taken) for taken in zip(*times, strict=True))
    return float(max(long - short, long / 10) / (_PROBES[1] - _PROBES[0]) / len(seen))


def _clock(seen: Observation) -> tuple[Callable[[], float], float]:
    """A clock and what it shows now: a processor's own time is that of the budget, a GPU is waited for."""
    clock = time.perf_counter if next(iter(seen.parameters.values())).is_cuda else time.process_time
    return clock, clock()


def _seconds(probe: GradientMatching, victim: Victim, seen: Sequence[Observation], seed: int) -> float:
    clock, began = _clock(seen[0])
    probe(victim, seen, generator=torch.Generator().manual_seed(seed))
    return clock() - began


def _matching(spec: str) -> GradientMatching | None:
    attack = build_attack(spec)
    found = getattr(attack, "matching", attack)
    return found if isinstance(found, GradientMatching) else None
