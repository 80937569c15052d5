"""Progress of jobs: the share of the expected work, and an estimate of the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from attacker.jobs.job import Event, Job


@dataclass(frozen=True, kw_only=True)
class State:
    """How far the work is.

    Attributes:
        title: Title of what was just begun or finished.
        done: Finished jobs.
        of: All.
        share: Share of the expected work, in [0, 1].
        seconds_left: A guess from the work of this session; None before there is one.
        failing: Finished jobs that were judged to have failed.
        best: Best score of everything finished; None while nothing has one.
    """

    title: str
    done: int
    of: int
    share: float
    seconds_left: float | None
    failing: int = 0
    best: float | None = None

    @classmethod
    def after(cls, title: str, jobs: int) -> State:
        """State of work that comes after all jobs."""
        return cls(title=title, done=jobs, of=jobs, share=1.0, seconds_left=None)


@dataclass(frozen=True)
class Judgement:
    """What is thought of a finished job.

    Attributes:
        failed: Whether it gave nothing.
        score: How good its best result is, the higher the better; None where that is not known.
    """

    failed: bool = False
    score: float | None = None


Watch = Callable[[State], None]

_LEAST = 1e-3
"""Cost of a job whose cost is not known, or nothing."""


class Progress:
    """Turns what happens to jobs into a `State`.

    Args:
        jobs: All of them, those too that an earlier session finished.
        watch: Told now and then.
    """

    def __init__(self, jobs: Iterable[Job], watch: Watch | None = None) -> None:
        self._titles: dict[str, str] = {}
        self._costs: dict[str, float] = {}
        self._watch = watch
        self._parts: dict[str, float] = {}
        self._old = self._worked = 0.0
        self._done = self._failing = 0
        self._best: float | None = None
        self._began = time.monotonic()
        for job in jobs:
            self.add(job)

    def add(self, job: Job) -> None:
        """One more job; one that is known already counts once."""
        self._titles[job.id], self._costs[job.id] = job.title, max(job.cost, _LEAST)

    def hear(self, event: Event) -> None:
        """An event of the crew."""
        if event.kind == "progress":
            self._parts[event.job] = event.share
            self._tell(event.job)
        else:
            self._parts.pop(event.job, None)

    def begin(self, job: Job) -> None:
        """A job is begun."""
        self._tell(job.id)

    def finish(self, job: Job, judgement: Judgement | None = None) -> None:
        """A job is finished."""
        self._parts.pop(job.id, None)
        self._count(job, judgement)
        self._tell(job.id)

    def finish_old(self, jobs: Iterable[Job], judge: Callable[[Job], Judgement | None] = lambda _job: None) -> None:
        """These were finished before this session; it is told once."""
        last = ""
        for job in jobs:
            last = job.id
            self._count(job, judge(job))
            self._old += self._costs[job.id]
        self._tell(last)

    def _count(self, job: Job, judgement: Judgement | None) -> None:
        self._done += 1
        self._worked += self._costs[job.id]
        if judgement is not None:
            self._failing += judgement.failed
            self._best = max((score for score in (self._best, judgement.score) if score is not None), default=None)

    def _tell(self, job: str) -> None:
        if self._watch is None:
            return
        worked = self._worked + sum(self._costs[part] * share for part, share in self._parts.items())
        total = sum(self._costs.values())
        fresh, spent = worked - self._old, time.monotonic() - self._began
        self._watch(
            State(
                title=self._titles.get(job, ""),
                done=self._done,
                of=len(self._costs),
                failing=self._failing,
                share=min(1.0, worked / total) if total else 1.0,
                seconds_left=spent / fresh * max(0.0, total - worked) if fresh > 0 else None,
                best=self._best,
            )
        )
