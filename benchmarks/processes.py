"""Contenders in processes of their own: the engine as audits run it, and others untouched by what the engine sets.

Audits divide victims among processes with one thread each (``--workers``). The engine also tells a process's allocator
to keep what it frees, which would serve others in that process as well.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier

import torch

from attacker.bench.contenders import VICTIMS, Contender, TimedRun, engine
from attacker.bench.problem import BenchProblem, make_problem
from attacker.jobs.allocator import keep_freed_memory
from images import first_images

_own: tuple[Contender, Barrier] | None = None
_alone: Contender | None = None


@contextmanager
def divided(model: str, victims: int, processes: int) -> Iterator[Contender]:
    """A contender whose victims are attacked by ``processes`` processes at once, which live inside the block.

    Args:
        model: A model spec.
        victims: In all; a multiple of ``processes``.
        processes: Two or more.

    Raises:
        ValueError: If the victims cannot be divided evenly.
    """
    if processes < 2 or victims % processes:
        raise ValueError(f"expected victims in equal parts for 2 or more processes, got {victims} for {processes}")
    context = multiprocessing.get_context("spawn")
    places: Queue[int] = context.Queue()
    for place in range(processes):
        places.put(place)
    shared = (model, victims, processes, places, context.Barrier(processes))
    with ProcessPoolExecutor(processes, context, _prepare, shared) as pool:

        def run(iterations: int) -> TimedRun:
            began = time.perf_counter()
            parts = list(pool.map(_attack, [iterations] * processes))
            return TimedRun(
                wall=time.perf_counter() - began,
                cpu=sum(part.cpu for part in parts),
                psnr=sum(part.psnr for part in parts) / processes,
                matching_loss=sum(part.matching_loss for part in parts) / processes,
            )

        yield Contender(
            name=f"{victims} victims, {processes} processes",
            kind=f"{VICTIMS} in processes",
            candidates=victims,
            run=run,
        )


def _prepare(model: str, victims: int, processes: int, places: Queue[int], together: Barrier) -> None:
    global _own
    torch.set_num_threads(1)
    keep_freed_memory()
    place = places.get()
    _, images, labels, inputs = first_images(victims)
    own = slice(place, None, processes)
    problem = make_problem(model, images[own], labels[own], inputs, device=torch.device("cpu"))
    _own = engine(problem, victims=victims // processes, restarts=1), together


def _attack(iterations: int) -> TimedRun:
    assert _own is not None
    contender, together = _own
    together.wait()  # or else a process could take two parts before another has started
    return contender.run(iterations)


@contextmanager
def apart(
    model: str, images: int, build: Callable[[BenchProblem], Contender], *, threads: int, device: str
) -> Iterator[Contender]:
    """A contender in a process of its own, which lives inside the block.

    Args:
        model: A model spec.
        images: Images of the problem, as many as for the other contenders.
        build: Makes the contender there; it is pickled.
        threads: Threads of torch.
        device: Where it computes.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, _prepare_alone, (model, images, build, threads, device)) as pool:
        like = pool.submit(_described).result()
        yield replace(
            like,
            run=lambda iterations: pool.submit(_attack_alone, iterations).result(),
            peak=None if like.peak is None else lambda: pool.submit(_peak_alone).result(),
        )


def _prepare_alone(
    model: str, images: int, build: Callable[[BenchProblem], Contender], threads: int, device: str
) -> None:
    global _alone
    torch.set_num_threads(threads)
    _, pictures, labels, inputs = first_images(images)
    _alone = build(make_problem(model, pictures, labels, inputs, device=torch.device(device)))


def _described() -> Contender:
    """The contender without what cannot be sent."""
    assert _alone is not None
    return replace(_alone, run=_attack_alone, peak=None if _alone.peak is None else _peak_alone)


def _attack_alone(iterations: int) -> TimedRun:
    assert _alone is not None
    return _alone.run(iterations)


def _peak_alone() -> int:
    assert _alone is not None
    assert _alone.peak is not None
    return _alone.peak()
