"""Works through jobs by whatever crew there is, leaving out those that are finished."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from attacker.jobs.job import Event, Job
from attacker.jobs.progress import Judgement, Progress, Watch
from attacker.jobs.ray_workers import RayCluster
from attacker.jobs.store import FolderStore, JobStore
from attacker.jobs.workers import Crew, OwnProcess, Processes

_logger = logging.getLogger(__name__)

TRIES: Final = 3
"""Times that a job is begun as it is; when its worker died so often, `Terms.died` says what is done."""

KEPT: Final = "What was finished is kept; the same command goes on from there"

Hire = Callable[[Callable[[Event], None]], Crew]
"""Makes a crew; it is given what hears of progress while `Crew.wait` works."""


class Terms:
    """How jobs are timed, judged and given up. These are for work that must be done whole; an audit has its own."""

    def timed(self, job: Job, rest: Sequence[Job], workers: int) -> Job | None:
        """The job with the time that it gets; None where none is left, and neither it nor the rest is begun.

        Args:
            job: The next one.
            rest: Those that come after it.
            workers: Who work at a time.
        """
        return job

    def judged(self, job: Job, result: Any) -> Judgement | None:
        """What is thought of a finished job, for those who watch."""
        return None

    def ended(self, job: Job, store: JobStore[Any]) -> None:
        """A job was ended by force, because its patience was over; keep what stands for its result.

        Raises:
            RuntimeError: If nothing does.
        """
        raise RuntimeError(f"{job.title} did not end in its time, and was ended by force. {KEPT}")

    def died(self, job: Job, times: int, how: str, store: JobStore[Any]) -> Job:
        """The job as it is to be tried next, when its worker died so often; or keep what stands for its result.

        Raises:
            RuntimeError: If neither will do.
        """
        raise RuntimeError(
            f"{job.title}: a worker process died {times} times, perhaps for want of memory ({how}); run the same "
            "command again, with fewer --workers. What was finished is kept"
        )


class Foreman:
    """Hands jobs to a crew and takes what they give, one step at a time.

    Args:
        store: Where results are.
        crew: Who works; entered.
        progress: Told of everything.
        terms: What is done where a job does not end as it should.
    """

    def __init__(self, store: JobStore[Any], crew: Crew, progress: Progress, terms: Terms) -> None:
        self._store, self._crew, self._progress, self._terms = store, crew, progress, terms
        self._waiting: deque[Job] = deque()
        self._running: dict[str, Job] = {}
        self._died: Counter[str] = Counter()

    @property
    def busy(self) -> bool:
        """Whether a job waits or is being done."""
        return bool(self._waiting or self._running)

    def add(self, job: Job) -> None:
        """A job to be done after those that wait; one that waits or is being done is not done twice."""
        if job.id not in self._running and all(job.id != waiting.id for waiting in self._waiting):
            self._progress.add(job)
            self._waiting.append(job)

    def withdraw(self) -> None:
        """Leave out what was not begun."""
        self._waiting.clear()

    def begin(self) -> None:
        """Begin as many jobs as can be."""
        while self._waiting and self._crew.free():
            job, *rest = self._waiting
            timed = self._terms.timed(job, rest, self._crew.workers)
            if timed is None:
                self.withdraw()
                return
            self._progress.begin(self._waiting.popleft())
            self._running[job.id] = job
            self._crew.begin(timed)

    def step(self) -> None:
        """Begin what can be begun, and wait for what happens next.

        Raises:
            RuntimeError: If a job cannot be done at all, as when its result cannot be written.
            ValueError: If a finished job was altered.
        """
        self.begin()
        for event in self._crew.wait() if self._running else ():
            self._progress.hear(event)
            if event.kind != "progress":
                self._after(self._running.pop(event.job), event)

    def _after(self, job: Job, event: Event) -> None:
        if event.kind == "raised":
            raise RuntimeError(f"{job.title} could not go on: {event.text}. {KEPT}")
        if event.kind == "died":
            self._died[job.id] += 1
            _logger.warning("%s: %s; begun %d times", job.id, event.text, self._died[job.id])
        if not self._store.has(job.id):
            job = self._without_result(job, event)
        if self._store.has(job.id):
            self._progress.finish(job, self._terms.judged(job, self._store.load(job.id)))
        else:
            self._waiting.appendleft(job)

    def _without_result(self, job: Job, event: Event) -> Job:
        """The job as it is tried next, unless something now stands for its result."""
        if event.kind == "ended":
            self._terms.ended(job, self._store)
        if event.kind == "died" and self._died[job.id] >= TRIES:
            return self._terms.died(job, self._died[job.id], event.text, self._store)
        return job


def run_jobs(
    jobs: Sequence[Job],
    store: JobStore[Any],
    hire: Hire,
    *,
    terms: Terms | None = None,
    watch: Watch | None = None,
) -> None:
    """Work through every job that is not finished. One that is finished counts, whoever did it and when.

    Args:
        jobs: All, in the order in which they are to be begun.
        store: Where they are kept.
        hire: Makes the crew, where anything is left to do.
        terms: How jobs are timed, judged and given up.
        watch: Told now and then.

    Raises:
        RuntimeError: If a job cannot be done at all, as when its result cannot be written.
        ValueError: If a finished job was altered.
    """
    terms, progress = terms or Terms(), Progress(jobs, watch)
    old = [job for job in jobs if store.has(job.id)]
    if old:
        progress.finish_old(old, lambda job: terms.judged(job, store.load(job.id)))
    known = {job.id for job in old}
    if waiting := [job for job in jobs if job.id not in known]:
        with hire(progress.hear) as crew:
            work_through(waiting, store, crew, progress, terms)


def work_through(
    jobs: Sequence[Job], store: JobStore[Any], crew: Crew, progress: Progress, terms: Terms | None = None
) -> None:
    """Have a crew that was entered do some jobs; raises as `run_jobs`."""
    foreman = Foreman(store, crew, progress, terms or Terms())
    for job in jobs:
        foreman.add(job)
    while foreman.busy:
        foreman.step()


def hire_for(store: FolderStore[Any], *, workers: int = 1, ray_address: str = "", gpu: bool = False) -> Hire:
    """The crew that a command asks for.

    Args:
        store: Where results go.
        workers: Processes on this machine, at least 1; one works in this process.
        ray_address: Address of an existing Ray cluster, which works instead; its nodes must see the store's folder.
        gpu: Whether tasks on the cluster ask for a GPU.
    """
    if ray_address:
        return lambda _hear: RayCluster(ray_address, store.folder, gpu=gpu)
    if workers > 1:
        return lambda _hear: Processes(workers, store.folder)
    return lambda hear: OwnProcess(store, hear)
