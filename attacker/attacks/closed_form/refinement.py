"""Common part of attacks that refine an analytic estimate: candidates, and the one that fits the update best."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from attacker.attacks.base import Outcome, Progress, Reconstruction
from attacker.attacks.best_match import EXACT_BELOW
from attacker.attacks.closed_form.estimate import Estimate, any_entrance, estimates
from attacker.attacks.closed_form.layerwise import labels_of
from attacker.reasons import Reason, because, joined
from attacker.victim import Victim
from fl_precode.observation import Observation

_TOGETHER = 8
"""Victims that are refined at once: a Jacobian's products keep all values of a replay and its derivative."""


@dataclass(frozen=True, kw_only=True)
class StartingImages:
    """Images for the victims of one estimate.

    Attributes:
        words: What made them, for the reason; None for the estimate itself.
        inputs: (v, channels, height, width).
        distances: (v,), to the updates; infinite where the image is not to be taken.
        steps: That it took.
    """

    words: Reason | None
    inputs: Tensor
    distances: Tensor
    steps: int


Improve = Callable[
    [Estimate, Sequence[Observation], Sequence[Tensor | None], Sequence[Generator]], list[StartingImages]
]


def run_from_estimates(
    victim: Victim,
    observations: Sequence[Observation],
    granted: Sequence[Tensor | None],
    generators: Sequence[Generator],
    progress: Progress | None,
    improve: Improve,
) -> list[Reconstruction]:
    """Estimate, improve, and take for each observation the candidate with the smallest distance; the first of equals.

    Args:
        victim: Public knowledge about the model.
        observations: That have an entrance.
        granted: Labels, or None.
        generators: Source of all randomness, one for each observation.
        progress: Called after each estimate.
        improve: Gives the candidates for an estimate, its observations and their labels.
    """
    results: dict[int, Reconstruction] = {}
    for through in (False, True):
        chosen = [i for i, observation in enumerate(observations) if any_entrance(victim, observation)[0] == through]
        part = [observations[i] for i in chosen]
        for estimate in estimates(victim, part, through_bottleneck=through, together=_TOGETHER):
            began = time.perf_counter()
            places = [chosen[index] for index in estimate.indices]
            updates = [observations[index] for index in places]
            sources = [generators[index] for index in places]
            candidates = improve(estimate, updates, [granted[index] for index in places], sources)
            seconds = estimate.seconds + (time.perf_counter() - began) / len(places)
            for place, index in enumerate(places):
                labels = labels_of(estimate, place, granted[index], classes=victim.label_numbers)
                results[index] = _result(estimate, candidates, place, labels, updates[place], seconds)
            if progress is not None:
                progress(len(results) / len(observations), None)
    return [results[index] for index in range(len(observations))]


def valid_start(victim: Victim, estimate: Estimate) -> StartingImages:
    """The estimate itself, moved onto valid images where it is outside; what is not finite becomes grey."""
    images = victim.inputs.clamp(estimate.inputs.nan_to_num(0.0, 0.0, 0.0))
    return StartingImages(
        words=because("estimate-clamped"), inputs=images, distances=estimate.replay.distances(images), steps=0
    )


def _result(
    estimate: Estimate,
    candidates: Sequence[StartingImages],
    place: int,
    labels: Tensor | None,
    observation: Observation,
    seconds: float,
) -> Reconstruction:
    best = min(candidates, key=lambda candidate: float(candidate.distances[place]))
    distance = float(best.distances[place])
    like = next(iter(observation.update.values()))
    converged = estimate.determined(place) and distance < EXACT_BELOW
    words = estimate.words(place) if best.steps == 0 or not estimate.determined(place) else ""
    return Reconstruction(
        inputs=best.inputs[place : place + 1].to(like.dtype),
        labels=labels,
        outcome=Outcome.CONVERGED if converged else Outcome.ITERATION_LIMIT,
        reason=joined(part for part in (best.words, words) if part),
        matching_loss=distance if torch.isfinite(best.distances[place]) else None,
        seconds=seconds,
        iterations=best.steps,
    )
