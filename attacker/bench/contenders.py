"""Contenders of a measurement: the attack as users call it, and the plain loop that it is compared with."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Generator, Tensor

from attacker.attacks import GradientMatching
from attacker.attacks.gradient_matching.parts import Adam, Restarts, TotalVariation
from attacker.attacks.randomness import derived
from attacker.bench.problem import BenchProblem
from attacker.gradients.distances import cosine_distance, total_variation
from attacker.gradients.double_backward import LoopProducts
from attacker.gradients.memory_budget import peak_bytes
from attacker.gradients.replay import Replay
from attacker.optim.random_streams import Draws

PLAIN = "plain loop"
RESTARTS = "restarts"
VICTIMS = "victims"
_SEED = 0
_DECAYS = (3 / 8, 5 / 8, 7 / 8)

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class TimedRun:
    """One attack from beginning to end.

    Attributes:
        wall: Seconds.
        cpu: Seconds of all threads of this process.
        psnr: Mean over the victims, dB.
        matching_loss: Mean cosine distance that was reached.
    """

    wall: float
    cpu: float
    psnr: float
    matching_loss: float


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to attack a number of candidates.

    Attributes:
        name: For people.
        kind: "plain loop", "restarts" or "victims", or the name of other software.
        candidates: How many are attacked in one run.
        run: Attacks with the given number of iterations.
        peak: Bytes that a short attack holds at its worst, beyond model and observations; None where not measured.
    """

    name: str
    kind: str
    candidates: int
    run: Callable[[int], TimedRun]
    peak: Callable[[], int] | None = None


def timed(work: Callable[[], Result], device: torch.device) -> tuple[Result, float, float]:
    """What ``work`` returns, its wall seconds and its CPU seconds; a GPU is waited for before and after."""
    _wait(device)
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    _wait(device)
    return result, time.perf_counter() - wall, time.process_time() - cpu


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def engine(problem: BenchProblem, *, victims: int, restarts: int) -> Contender:
    """The attack "inverting-gradients" with the command line settings of its reference code.

    Args:
        problem: What to attack.
        victims: How many of its observations.
        restarts: For each of them.
    """

    def attack(iterations: int) -> tuple[Tensor, list[float]]:
        settings = GradientMatching(optimiser=Adam(iterations=iterations), restarts=Restarts(restarts))
        results = settings(
            problem.victim,
            problem.observations[:victims],
            generator=Generator().manual_seed(_SEED),
            labels=[label[None] for label in problem.labels[:victims]],
        )
        reconstructions = [result.inputs for result in results if result.inputs is not None]
        losses = [result.matching_loss for result in results if result.matching_loss is not None]
        if len(reconstructions) < victims or len(losses) < victims:
            reasons = sorted({result.reason for result in results if result.inputs is None})
            raise RuntimeError(f"the attack on {problem.victim.name!r} gave nothing to compare: {reasons}")
        return torch.cat(reconstructions), losses

    count, kind = (victims, VICTIMS) if victims > 1 else (restarts, RESTARTS)
    name = f"{count} {kind}" if count > 1 else "1 candidate"
    return _contender(name, kind, victims * restarts, problem, attack)


def plain_loop(problem: BenchProblem) -> Contender:
    """One candidate of one victim by double backward over whole gradients, as research code does it."""
    observation, optimiser, prior = problem.observations[0], Adam(), TotalVariation(1e-4)
    inputs = problem.victim.inputs

    def attack(iterations: int) -> tuple[Tensor, list[float]]:
        products = LoopProducts(
            Replay(problem.victim, observation.parameters, observation.buffers), [observation.update]
        )
        # The engine's own start, so that both take the same path.
        draws = Draws.of_each(derived(Generator().manual_seed(_SEED), 1), 1)
        x = draws.normal(1, *inputs.shape, like=next(iter(observation.parameters.values()))).requires_grad_(True)
        labels = problem.labels[:1].reshape(1, 1, 1)
        adam = torch.optim.Adam([x], lr=optimiser.learning_rate)
        decay = torch.optim.lr_scheduler.MultiStepLR(adam, [int(share * iterations) for share in _DECAYS])
        best = x.detach().clone()
        least = reached = torch.full((), torch.inf, dtype=torch.float64, device=x.device)
        for iteration in range(iterations + 1):
            distance = cosine_distance(products(x, labels)).squeeze()
            loss = distance + prior.weight * total_variation(x).squeeze()
            better = loss.detach() < least  # not looked at, since a GPU would have to be waited for
            best = torch.where(better, x.detach(), best)
            reached, least = torch.where(better, distance.detach(), reached), torch.where(better, loss.detach(), least)
            if iteration == iterations:
                break
            (gradient,) = torch.autograd.grad(loss, x)
            x.grad = gradient.sign()
            adam.step()
            decay.step()
            with torch.no_grad():
                x.copy_(inputs.clamp(x))
        return best[0, 0], [float(reached)]

    return _contender(PLAIN, PLAIN, 1, problem, attack)


def _contender(
    name: str,
    kind: str,
    candidates: int,
    problem: BenchProblem,
    attack: Callable[[int], tuple[Tensor, Sequence[float]]],
) -> Contender:
    def run(iterations: int) -> TimedRun:
        (reconstructions, losses), wall, cpu = timed(lambda: attack(iterations), problem.device)
        return TimedRun(
            wall=wall,
            cpu=cpu,
            psnr=problem.quality(reconstructions),
            matching_loss=float(torch.tensor(losses).double().mean()),
        )

    def peak() -> int:
        return peak_bytes(lambda: attack(2), problem.device)

    return Contender(name=name, kind=kind, candidates=candidates, run=run, peak=peak)


def contenders(problem: BenchProblem, candidates: Sequence[int]) -> list[Contender]:
    """The plain loop, then the engine with each number of restarts and, from 2 on, of victims."""
    entrants = [plain_loop(problem)]
    for count in sorted(set(candidates)):
        entrants.append(engine(problem, victims=1, restarts=count))
        if count > 1:
            entrants.append(engine(problem, victims=count, restarts=1))
    return entrants
