"""The campaign: cuts a plan into chunks and works through those that are not finished, by whatever crew there is."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from attacker.attacks.attack import Outcome, Reconstruction
from attacker.audit.chunk import Chunk, attack_seed, chunk_size, failed
from attacker.audit.chunk_store import ChunkStore
from attacker.audit.clock import UNLIMITED, Clock
from attacker.audit.costs import replays
from attacker.audit.crew import Crew, Event
from attacker.audit.record import PlannedAttack
from attacker.audit.scope import Federation
from attacker.audit.settings import AuditSettings

_logger = logging.getLogger(__name__)

ENDED: Final = "its time in the budget ended, and it had to be stopped by force before it gave anything"
"""Why a chunk failed that did not end by itself."""

_TRIES: Final = 3
"""Times that a chunk is begun as it is; when its worker died so often, it is cut smaller."""


@dataclass(frozen=True, kw_only=True)
class CampaignState:
    """How far a campaign is.

    Attributes:
        title: Of what was just begun or finished.
        done: Finished chunks.
        of: All.
        failing: Finished chunks in which an attack failed or diverged.
        share: Of the expected work, in [0, 1].
        seconds_left: A guess from the work of this session; None before there is one.
        best_ssim: Of everything finished, controls left out; None while nothing could be compared.
    """

    title: str
    done: int
    of: int
    failing: int
    share: float
    seconds_left: float | None
    best_ssim: float | None

    @classmethod
    def after(cls, title: str, chunks: int) -> CampaignState:
        """Of work that comes after all chunks."""
        return cls(title=title, done=chunks, of=chunks, failing=0, share=1.0, seconds_left=None, best_ssim=None)


Watch = Callable[[CampaignState], None]
Score = Callable[[Chunk, Sequence[Reconstruction]], float | None]
"""Best SSIM of a finished chunk. The evaluation's; no worker sees it."""


def cut(federations: Sequence[Federation], plan: Sequence[PlannedAttack], settings: AuditSettings) -> list[Chunk]:
    """The chunks of a plan, in its order; the same for any number of workers."""
    found: list[Chunk] = []
    places: Counter[str] = Counter()
    by_id = {own.id: own for own in federations}
    for planned in plan:
        if planned.status != "run":
            continue
        own = by_id[planned.federation]
        places[own.id] += 1
        size = min(chunk_size(target.batch_size) for target in own.targets)
        for number, start in enumerate(range(0, planned.updates, size), start=1):
            found.append(
                Chunk(
                    id=f"{own.id}-a{places[own.id]:02}-{number:04}",
                    federation=own.id,
                    attack=planned.attack,
                    site=own.site,
                    targets=own.targets[start : min(start + size, planned.updates)],
                    seed=attack_seed(settings.seed, planned.attack),
                    granted=tuple(sorted(settings.knowledge.granted)),
                    device=settings.device,
                    threads=settings.threads,
                )
            )
    return found


def run_chunks(
    chunks: Sequence[Chunk],
    store: ChunkStore,
    crew: Callable[[Callable[[Event], None]], Crew],
    *,
    plan: Sequence[PlannedAttack] = (),
    score: Score | None = None,
    watch: Watch | None = None,
    clock: Clock = UNLIMITED,
) -> None:
    """Work through every chunk that is not finished. One that is finished counts, whoever did it and when.

    When the time of the clock is over, chunks that were not begun are left out; the same audit can go on with them.

    Args:
        chunks: All of the campaign.
        store: Where they are kept.
        crew: Makes the crew; it is given what hears of progress while `Crew.wait` works.
        plan: Expected seconds, for the guess of the time left.
        score: Finds the best SSIM of a finished chunk.
        watch: Told now and then.
        clock: How long attacks may take.

    Raises:
        RuntimeError: If a chunk cannot be worked on at all, as when its results cannot be written.
        ValueError: If a finished chunk was altered.
    """
    progress = _Progress(chunks, plan, score, watch)
    for chunk in chunks:
        if store.has(chunk.id):
            progress.finish(chunk, store.load(chunk.id), old=True)
    # Formulas cost little: they must not be what there is no time for.
    waiting = deque(sorted((one for one in chunks if not store.has(one.id)), key=lambda one: replays(one.attack)))
    running = {chunk.id: chunk for chunk in waiting}
    died: Counter[str] = Counter()
    if not waiting:
        return
    with crew(progress.hear) as workers:
        under_way = 0
        while waiting or under_way:
            while waiting and workers.free():
                timed = progress.timed(waiting, clock, workers.workers)
                if timed is None:
                    waiting.clear()
                    break
                progress.tell(waiting.popleft())
                workers.begin(timed)
                under_way += 1
            for event in workers.wait() if under_way else ():
                progress.hear(event)
                if event.kind == "progress":
                    continue
                under_way -= 1
                died[event.chunk] += event.kind == "died"
                chunk = running[event.chunk] = _after(running[event.chunk], event, died[event.chunk], store)
                if store.has(chunk.id):
                    progress.finish(chunk, store.load(chunk.id))
                else:
                    waiting.appendleft(chunk)


def _after(chunk: Chunk, event: Event, died: int, store: ChunkStore) -> Chunk:
    """The chunk as it is finished, or to be begun again."""
    if event.kind == "raised":
        raise RuntimeError(
            f"{chunk.attack} on {chunk.federation} could not go on: {event.text}. What was finished is kept; the same "
            "command goes on from there"
        )
    if event.kind == "ended" and not store.has(chunk.id):
        store.keep(chunk.id, [failed(ENDED)] * len(chunk.targets))
    return _again(chunk, died, event.text, store) if event.kind == "died" else chunk


def _again(chunk: Chunk, times: int, how: str, store: ChunkStore) -> Chunk:
    """A chunk whose worker died, as it is to be tried next; one that cannot be cut smaller has failed."""
    _logger.warning("%s: %s; begun %d times", chunk.id, how, times)
    if store.has(chunk.id) or times < _TRIES:
        return chunk
    if chunk.pieces >= len(chunk.targets):
        reason = f"{how}, {times} times, perhaps for want of memory"
        store.keep(chunk.id, [failed(reason)] * len(chunk.targets))
        return chunk
    return replace(chunk, pieces=min(2 * chunk.pieces, len(chunk.targets)))


class _Progress:
    """Turns events into shares, a guess of the time left and the best SSIM."""

    def __init__(
        self, chunks: Sequence[Chunk], plan: Sequence[PlannedAttack], score: Score | None, watch: Watch | None
    ) -> None:
        expected = {(one.federation, one.attack): (one.expected_seconds or 0.0) / max(one.updates, 1) for one in plan}
        self._work = {
            one.id: max(expected.get((one.federation, one.attack), 0.0), 1e-3) * len(one.targets) for one in chunks
        }
        self._titles = {one.id: f"{one.federation}: {one.attack}" for one in chunks}
        self._total = sum(self._work.values())
        self._score, self._watch = score, watch
        self._parts: dict[str, float] = {}
        self._old = self._worked = 0.0
        self._done = self._failing = 0
        self._best: float | None = None
        self._began = time.monotonic()

    def hear(self, event: Event) -> None:
        """An event of the crew."""
        if event.kind == "progress":
            self._parts[event.chunk] = event.share
            self._tell(self._titles[event.chunk])
        else:
            self._parts.pop(event.chunk, None)

    def timed(self, waiting: Sequence[Chunk], clock: Clock, workers: int) -> Chunk | None:
        """The first of those that wait, with the time that it gets; None where there is none left."""
        first, *rest = waiting
        return clock.timed(first, self._work[first.id], [self._work[one.id] for one in rest], workers)

    def tell(self, chunk: Chunk) -> None:
        """A chunk is begun."""
        self._tell(self._titles[chunk.id])

    def finish(self, chunk: Chunk, found: Sequence[Reconstruction], *, old: bool = False) -> None:
        """A chunk is finished; an old one was, before this session."""
        self._done += 1
        self._worked += self._work[chunk.id]
        self._old += self._work[chunk.id] if old else 0.0
        self._failing += any(one.outcome in (Outcome.FAILED, Outcome.DIVERGED) for one in found)
        best = self._score(chunk, found) if self._score is not None else None
        if best is not None:
            self._best = best if self._best is None else max(best, self._best)
        self._tell(self._titles[chunk.id])

    def _tell(self, title: str) -> None:
        if self._watch is None:
            return
        worked = self._worked + sum(self._work[chunk] * share for chunk, share in self._parts.items())
        fresh, spent = worked - self._old, time.monotonic() - self._began
        self._watch(
            CampaignState(
                title=title,
                done=self._done,
                of=len(self._work),
                failing=self._failing,
                share=min(1.0, worked / self._total) if self._total else 1.0,
                seconds_left=spent / fresh * max(0.0, self._total - worked) if fresh > 0 else None,
                best_ssim=self._best,
            )
        )
