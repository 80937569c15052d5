"""Images from the running statistics that a client sends back and nothing else: what defences of gradients leave."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from torch import Generator, Tensor

from attacker.attacks.base import Attack, Outcome, Progress, Reconstruction
from attacker.attacks.gradient_matching.parts import Adam, Problem
from attacker.attacks.registration import register_attack
from attacker.gradients.distances import total_variation
from attacker.gradients.trace import trace
from attacker.objectives.returned_statistics import (
    ReturnedStatistics,
    returned_prior,
    why_no_returned_statistics,
)
from attacker.optim.deadline import share_of_time
from attacker.optim.initialisation import Normal
from attacker.optim.problem import Objective
from attacker.optim.random_streams import Draws
from attacker.optim.setting_ranges import check_positive, check_weight, check_whole
from attacker.reasons import Reason, because
from attacker.victim import Victim
from fl_precode.observation import Observation


@register_attack(
    "statistics-only",
    title="inversion of batch statistics",
    description="images with the statistics that BatchNorm buffers sent back say; no gradient, no labels",
    source="this project; Yin et al., CVPR 2020 and 2021",
    needs=frozenset({"batch-size", "buffers"}),
    rank=240,
    cost_of_iteration=0.3,
)
@dataclass(frozen=True, kw_only=True)
class StatisticsOnly(Attack):
    """Search for images whose statistics at all BatchNorm layers are those of the client's batch.

    They follow from the running buffers before and after (`attacker.gradients.returned_statistics`), exactly after one
    step. The update itself is not looked at, so that noise, pruning and clipping of gradients change nothing. It finds
    a batch with the same statistics; whether that is the client's depends on how many statistics there are.

    Attributes:
        iterations: Steps of Adam, 1 or more.
        restarts: Starts that compete by their distance, 1 or more.
        learning_rate: Initial step in the normalised scale, positive; it falls to 0 as a cosine does.
        total_variation: Weight of the prior, 0 or more.
        signed: Whether Adam receives the sign of the gradient alone.
        converged_below: Distance below which a result counts as converged, positive.

    Raises:
        ValueError: If a setting is out of its range.
    """

    iterations: int = 4_000
    restarts: int = 1
    learning_rate: float = 0.05
    total_variation: float = 1e-4
    signed: bool = False
    converged_below: float = 1e-6

    def __post_init__(self) -> None:
        check_whole("iterations", self.iterations, least=1)
        check_whole("restarts", self.restarts, least=1)
        check_positive("learning_rate", self.learning_rate)
        check_positive("converged_below", self.converged_below)
        check_weight("total_variation", self.total_variation)

    @property
    def name(self) -> str:
        """Name in the registry."""
        return "statistics-only"

    @property
    def evaluations(self) -> int:
        """Evaluations of candidates for one update."""
        return self.iterations * self.restarts

    def refuses(self, victim: Victim, observation: Observation) -> Reason | None:
        """Updates from which no statistics were returned, or of a number of images that is not known."""
        return why_no_returned_statistics(victim, observation)

    def run(
        self,
        victim: Victim,
        observations: Sequence[Observation],
        labels: Sequence[Tensor | None],
        generators: Sequence[Generator],
        progress: Progress | None,
    ) -> list[Reconstruction]:
        """One search for each update; labels are not needed and not found."""
        results = []
        for number, (observation, generator) in enumerate(zip(observations, generators, strict=True)):
            with share_of_time(number, len(observations)):
                results.append(self._one(victim, observation, labels[number], generator))
            if progress is not None:
                progress((number + 1) / len(observations), None)
        return results

    def _one(
        self, victim: Victim, observation: Observation, granted: Tensor | None, generator: Generator
    ) -> Reconstruction:
        began = time.perf_counter()
        draws = Draws.of_each([generator], self.restarts)
        like = next(iter(observation.parameters.values()))
        start = Normal().candidates(victim.inputs, observation.batch_size or 1, draws=draws, like=like)
        statistics = returned_prior(victim, [observation], latents=trace(victim).latents)
        optimiser = Adam(
            iterations=self.iterations, learning_rate=self.learning_rate, signed=self.signed, schedule="cosine",
            iterate="best",
        )  # fmt: skip
        objective = _Statistics(statistics, self.total_variation)
        found = optimiser.minimise(
            Problem(objective=objective, start=start, draws=draws, project=victim.inputs.clamp), None
        )
        restart = int(found.best_restart()[0])
        distance = float(found.distances[0, restart])
        if not distance < float("inf"):
            reason = because("distance-not-finite.never", restarts=self.restarts)
            return Reconstruction(inputs=None, labels=None, outcome=Outcome.DIVERGED, reason=reason)
        converged = distance < self.converged_below
        return Reconstruction(
            inputs=found.candidates[0, restart],
            labels=granted,
            outcome=Outcome.CONVERGED if converged else Outcome.ITERATION_LIMIT,
            reason=because("statistics-fitted", missed=max(0.0, distance) ** 0.5),
            seconds=time.perf_counter() - began,
            iterations=int(found.iterations[0].max()),
            starts=self.restarts,
            cut=found.cut and not converged,
        )


class _Statistics(Objective):
    """Distance of statistics, and total variation."""

    def __init__(self, statistics: ReturnedStatistics, weight: float) -> None:
        self._statistics, self._weight = statistics, weight

    def distances(self, x: Tensor) -> Tensor:
        """Distances of candidates' statistics to the returned ones."""
        return self._statistics(x)

    def priors(self, x: Tensor) -> Tensor:
        """Weighted total variation."""
        return self._weight * total_variation(x) if self._weight else super().priors(x)

    def keep(self, victims: Sequence[int], restarts: Sequence[Sequence[int]]) -> Self:
        """The same for some of the candidates."""
        return type(self)(self._statistics.keep(victims, restarts), self._weight)
