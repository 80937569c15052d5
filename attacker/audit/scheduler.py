"""The campaign: cuts a plan into chunks and has those done that are not finished, by whatever crew there is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from attacker.attacks.base import Outcome, Reconstruction
from attacker.audit.clock import UNLIMITED, Clock
from attacker.audit.execution.attack_job import Chunk, attack_seed, chunk_size, failed
from attacker.audit.execution.work import ChunkStore, Results, job_of
from attacker.audit.federations.federation import AuditedFederation
from attacker.audit.planning.costs import replays
from attacker.audit.record.schema import PlannedAttack
from attacker.audit.settings import AuditSettings
from attacker.jobs.job import Job
from attacker.jobs.progress import Judgement, Watch
from attacker.jobs.run import Hire, Terms, run_jobs
from attacker.jobs.store import JobStore
from attacker.reasons import because

Needless = Callable[[Chunk], bool]
"""Whether a chunk that was not begun would change no verdict."""

Score = Callable[[Chunk, Sequence[Reconstruction]], float | None]
"""Best SSIM of a finished chunk. The evaluation's; no worker sees it."""


def cut(
    federations: Sequence[AuditedFederation], plan: Sequence[PlannedAttack], settings: AuditSettings
) -> list[Chunk]:
    """The chunks of a plan, in its order; the same for any number of workers."""
    chunks: list[Chunk] = []
    places: Counter[str] = Counter()
    by_id = {member.id: member for member in federations}
    for planned in plan:
        if planned.status != "run":
            continue
        federation = by_id[planned.federation]
        places[federation.id] += 1
        size = min(chunk_size(target.batch_size) for target in federation.targets)
        for number, start in enumerate(range(0, planned.updates, size), start=1):
            chunks.append(
                Chunk(
                    id=f"{federation.id}-a{places[federation.id]:02}-{number:04}",
                    federation=federation.id,
                    attack=planned.attack,
                    site=federation.site,
                    targets=federation.targets[start : min(start + size, planned.updates)],
                    seed=attack_seed(settings.seed, planned.attack),
                    granted=tuple(sorted(settings.knowledge.granted)),
                    device=settings.device,
                    threads=settings.threads,
                )
            )
    return chunks


def run_chunks(
    chunks: Sequence[Chunk],
    store: ChunkStore,
    hire: Hire,
    *,
    plan: Sequence[PlannedAttack] = (),
    score: Score | None = None,
    watch: Watch | None = None,
    clock: Clock = UNLIMITED,
    after_each: Callable[[], None] | None = None,
    needless: Needless = lambda _chunk: False,
    controls: Collection[str] = (),
) -> None:
    """Have every chunk done that is not finished; formulas first, which cost little: there must be time for them.

    When the time of the clock is over, chunks that were not begun are left out; the same audit can go on with them.

    Args:
        chunks: All of the campaign.
        store: Where they are kept.
        hire: Makes the crew.
        plan: Expected seconds, for the guess of the time left.
        score: Finds the best SSIM of a finished chunk.
        watch: Told now and then.
        clock: How long attacks may take.
        after_each: Called when a chunk is finished, and before the first one is begun.
        needless: Asked of chunks that were not begun; those are left out. It may answer by what is finished: formulas
            of federations come before those of their controls, and these before searches.
        controls: Identifiers of the federations that are controls.

    Raises:
        RuntimeError: If a chunk cannot be worked on at all, as when its results cannot be written.
        ValueError: If a finished chunk was altered.
    """
    expected = {
        (planned.federation, planned.attack): (planned.expected_seconds or 0.0) / max(planned.updates, 1)
        for planned in plan
    }
    costs = {
        chunk.id: max(expected.get((chunk.federation, chunk.attack), 0.0), 1e-3) * len(chunk.targets)
        for chunk in chunks
    }
    jobs = [
        job_of(chunk, costs[chunk.id], _phase(chunk, controls)) for chunk in in_turn(chunks, costs, clock, controls)
    ]
    after_each = after_each or (lambda: None)
    after_each()
    run_jobs(jobs, store, hire, terms=_AuditTerms(clock, score, after_each, needless), watch=watch)


def in_turn(
    chunks: Sequence[Chunk], costs: Mapping[str, float], clock: Clock = UNLIMITED, controls: Collection[str] = ()
) -> list[Chunk]:
    """The chunks as they are to be begun: phase by phase, in the order of the plan.

    Where time has no end, the longest of a phase come first: none of them is then left for one process at the end.

    Args:
        chunks: In the order of the plan.
        costs: Expected seconds, by identifier.
        clock: How long attacks may take.
        controls: Identifiers of the federations that are controls.
    """
    longest_first = clock.budget is None
    return sorted(chunks, key=lambda chunk: (_phase(chunk, controls), -costs[chunk.id] if longest_first else 0.0))


def _phase(chunk: Chunk, controls: Collection[str]) -> int:
    """Formulas of federations, formulas of their controls, searches."""
    return 2 if replays(chunk.attack) else int(chunk.federation in controls)


class _AuditTerms(Terms):
    """An audit gives what it can: what is cut, ended or killed again and again is a result, too."""

    def __init__(self, clock: Clock, score: Score | None, after_each: Callable[[], None], needless: Needless) -> None:
        self._clock, self._score, self._after_each, self._needless = clock, score, after_each, needless

    def needed(self, job: Job) -> bool:
        """Whether it may still change a verdict."""
        return not self._needless(Chunk.from_content(job.content))

    def timed(self, job: Job, rest: Sequence[Job], workers: int) -> Job | None:
        """See `Clock.timed`."""
        return self._clock.timed(job, rest, workers)

    def judged(self, job: Job, result: Results) -> Judgement:
        """Whether any attack failed or diverged, and the best SSIM."""
        lost = any(reconstruction.outcome in (Outcome.FAILED, Outcome.DIVERGED) for reconstruction in result)
        best = None if self._score is None else self._score(Chunk.from_content(job.content), result)
        self._after_each()
        return Judgement(lost, best)

    def ended(self, job: Job, store: JobStore[Any]) -> None:
        """All its attacks have failed."""
        store.keep(job.id, [failed(because("stopped-by-force"))] * len(job.content["targets"]))

    def died(self, job: Job, times: int, how: str, store: JobStore[Any]) -> Job:
        """The chunk in smaller pieces; one that cannot be cut smaller has failed."""
        targets, pieces = len(job.content["targets"]), job.content["pieces"]
        if pieces >= targets:
            reason = because("process-died", how=how, times=times)
            store.keep(job.id, [failed(reason)] * targets)
            return job
        return replace(job, content={**job.content, "pieces": min(2 * pieces, targets)})
