"""The engine as audits run it: victims divided among processes with one thread each (``--workers``)."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier

import torch

from attacker.allocator import keep_freed_memory
from attacker.bench.contenders import VICTIMS, Contender, Run, engine
from attacker.bench.problem import make_problem
from images import first_images

_own: tuple[Contender, Barrier] | None = None


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

        def run(iterations: int) -> Run:
            began = time.perf_counter()
            parts = list(pool.map(_attack, [iterations] * processes))
            return Run(
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


def _attack(iterations: int) -> Run:
    assert _own is not None
    contender, together = _own
    together.wait()  # or else a process could take two parts before another has started
    return contender.run(iterations)
