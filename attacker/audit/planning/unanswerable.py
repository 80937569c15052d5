"""Updates that no search here can answer within any sensible time: which they are, why, and what would change it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from attacker.audit.federations.federation import AuditedFederation
from attacker.gradients.observed import steps_behind
from attacker.reasons import Reason, because
from attacker.wording import counted

SENSIBLE: Final = 10.0
"""Times the budget that the shortest search of a single update must take for the update to count as one of these."""


_LONG: Final = 3600.0
"""Seconds that it must take besides: what takes minutes needs no more than a usual budget."""


def why_unanswerable(
    federation: AuditedFederation, unit: float | None, searches: Iterable[float], budget: float | None
) -> Reason | None:
    """Why no search can answer these updates, with what would change it; None when one can.

    Args:
        federation: The federation.
        unit: Seconds of one iteration for one update; None where it could not be measured.
        searches: Costs of the attacks that search, each at its fewest iterations, for one update, in iterations.
        budget: Seconds of the audit; None for no limit.
    """
    shortest = min(searches, default=None)
    if unit is None or budget is None or shortest is None or unit * shortest <= max(_LONG, SENSIBLE * budget):
        return None
    observation = federation.subject.tape.load(federation.entries[0])
    steps = steps_behind(observation)
    behind = counted(observation.batch_size or 1, "image") + (f" in {counted(steps, 'local step')}" if steps else "")
    return because(
        "unanswerable",
        images=behind,
        iteration=_about(unit),
        search=_about(unit * shortest),
        times=unit * shortest / budget,
        budget=_hours(unit * shortest),
    )


def _about(seconds: float) -> str:
    """A long time, roughly.

    >>> _about(4.2), _about(400), _about(40000)
    ('4 s', '7 min', '11 hours')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} hours"


def _hours(seconds: float) -> str:
    """A budget that is enough, as the command line takes it.

    >>> _hours(5000), _hours(40000)
    ('2h', '14h')
    """
    return f"{int(1.25 * seconds // 3600) + 1}h"
