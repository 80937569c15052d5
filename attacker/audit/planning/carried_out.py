"""The plan as it was carried out: what the budget ended before it was done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from attacker.audit.execution.attack_job import Chunk
from attacker.audit.execution.work import ChunkStore
from attacker.audit.record.schema import PlannedAttack
from attacker.reasons import because


def as_it_went(plan: Sequence[PlannedAttack], chunks: Sequence[Chunk], store: ChunkStore) -> list[PlannedAttack]:
    """The plan with the updates that were attacked; what was not begun is over the budget.

    Args:
        plan: As it was made.
        chunks: All of it.
        store: Those that were finished.
    """
    done: Counter[tuple[str, str]] = Counter()
    for chunk in chunks:
        if store.has(chunk.id):
            done[chunk.federation, chunk.attack] += len(chunk.targets)
    return [_as_it_went(planned, done[planned.federation, planned.attack]) for planned in plan]


def _as_it_went(planned: PlannedAttack, done: int) -> PlannedAttack:
    if planned.status != "run" or done >= planned.updates:
        return planned
    if not done:
        return planned.replanned(because("budget-ended", why=planned.why), status="over_budget", updates=0)
    return planned.replanned(
        because("budget-ended.after", why=planned.why, done=done, updates=planned.updates), updates=done
    )


def left_over(plan: Sequence[PlannedAttack], went: Sequence[PlannedAttack]) -> int:
    """Updates that were planned to be attacked, counted for each attack, and were not."""
    return sum(planned.updates - other.updates for planned, other in zip(plan, went, strict=True))
