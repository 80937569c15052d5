"""The plan as it was carried out: what the budget ended before it was done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from attacker.audit.execution.attack_job import Chunk
from attacker.audit.execution.work import ChunkStore
from attacker.audit.record.schema import PlannedAttack
from attacker.reasons import because


def as_it_went(
    plan: Sequence[PlannedAttack],
    chunks: Sequence[Chunk],
    store: ChunkStore,
    needless: Callable[[Chunk], bool] = lambda _chunk: False,
) -> list[PlannedAttack]:
    """The plan with the updates that were attacked; what was not begun is settled, or over the budget.

    Args:
        plan: As it was made.
        chunks: All of it.
        store: Those that were finished.
        needless: Whether one that was not begun would have changed no verdict.
    """
    done: Counter[tuple[str, str]] = Counter()
    settled: set[tuple[str, str]] = set()
    for chunk in chunks:
        if store.has(chunk.id):
            done[chunk.federation, chunk.attack] += len(chunk.targets)
        elif needless(chunk):
            settled.add((chunk.federation, chunk.attack))
    keys = [(planned.federation, planned.attack) for planned in plan]
    return [_as_it_went(planned, done[key], key in settled) for planned, key in zip(plan, keys, strict=True)]


def _as_it_went(planned: PlannedAttack, done: int, settled: bool) -> PlannedAttack:
    if planned.status != "run" or done >= planned.updates:
        return planned
    if settled:
        reason = because("settled", why=planned.why)
        return planned.replanned(reason, status="run" if done else "settled", updates=done)
    if not done:
        return planned.replanned(because("budget-ended", why=planned.why), status="over_budget", updates=0)
    return planned.replanned(
        because("budget-ended.after", why=planned.why, done=done, updates=planned.updates), updates=done
    )


def left_over(plan: Sequence[PlannedAttack], went: Sequence[PlannedAttack]) -> int:
    """Updates that were planned to be attacked, counted for each attack, and were not."""
    return sum(
        planned.updates - other.updates
        for planned, other in zip(plan, went, strict=True)
        if "settled" not in other.why.codes
    )
