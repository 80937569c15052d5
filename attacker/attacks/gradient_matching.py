"""Gradient matching: optimise images until their gradient points where the observed one does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Generator, Tensor

from attacker.attacks.attack import Attack, Outcome, Progress, Reconstruction
from attacker.attacks.granted import check_labels
from attacker.engine import (
    Descent,
    Matched,
    Replay,
    Trace,
    candidates_at_once,
    cosine_distance,
    gradient_products,
    group_observations,
    observed_gradient,
    trace,
    why_not_one_step,
)
from attacker.labels import idlg_label
from attacker.victim import Victim
from fl_precode.observation import Gradients, Observation

_NO_LABELS = "the labels are unknown: none were granted, and iDLG recovers one image's label, from a last Linear layer"


@dataclass(frozen=True, kw_only=True)
class GradientMatching(Attack):
    """Inverting Gradients (Geiping et al., NeurIPS 2020, arXiv 2003.14053) and its presets.

    Minimises ``1 - cos(g(x), g*) + total_variation * TV(x)`` over all parameters by Adam, the learning rate falling
    tenfold at 3/8, 5/8 and 7/8, from N(0, 1) in the model's normalised scale. Of each restart the iterate with the
    smallest measured loss is kept, TV included; restarts then compete by the distance at that iterate, without TV.

    Labels: those granted at the call, else recovered by iDLG, which fits one image only. Models with a variational
    bottleneck are attacked as their authors did it, with fresh noise at every step and without adaptation; the smallest
    distance is then the luckiest of many draws. Fits gradients, and weights after one announced local step (or none
    announced). Field defaults are the command line defaults of the reference code.

    Attributes:
        iterations: Optimiser steps, 1 or more.
        learning_rate: Initial step in the normalised scale, positive.
        total_variation: Weight of mean |dh| + mean |dv|, 0 or more.
        restarts: Independent starts for each observation, 1 or more.
        signed: Whether Adam receives only the sign of the gradient.
        boxed: Whether candidates are clamped to valid images after every step.
        converged_below: Distance below which the outcome is "converged", in (0, 2].

    Raises:
        ValueError: If a setting is out of its range.
    """

    iterations: int = 24_000
    learning_rate: float = 0.1
    total_variation: float = 1e-4
    restarts: int = 1
    signed: bool = True
    boxed: bool = True
    converged_below: float = 0.01

    def __post_init__(self) -> None:
        for name, value in (("iterations", self.iterations), ("restarts", self.restarts)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"expected {name} to be a whole number of 1 or more, got {value!r}")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"expected a positive, finite learning_rate, got {self.learning_rate!r}")
        if not 0 <= self.total_variation < float("inf"):
            raise ValueError(f"expected a finite total_variation of 0 or more, got {self.total_variation!r}")
        if not 0 < self.converged_below <= 2:
            raise ValueError(f"expected converged_below in (0, 2], got {self.converged_below!r}")
        for name, flag in (("signed", self.signed), ("boxed", self.boxed)):
            if not isinstance(flag, bool):
                raise ValueError(f"expected {name} to be True or False, got {flag!r}")

    @property
    def name(self) -> str:
        """Name in the registry."""
        return "inverting-gradients"

    def refuses(self, victim: Victim, observation: Observation) -> str | None:
        """Why the attack cannot fit the observation, or None when it can."""
        del victim
        if observation.batch_size is None:
            return "the batch size is unknown, and candidates need one"
        if not any(bool((value != 0).any()) for value in observation.update.values()):
            return "the update is zero everywhere: it has no direction to match"
        return why_not_one_step(observation)

    def run(
        self,
        victim: Victim,
        observations: Sequence[Observation],
        labels: Sequence[Tensor | None],
        generator: Generator,
        progress: Progress | None,
    ) -> list[Reconstruction]:
        """Attack observations of the same round, weights and batch size together, in pieces of bounded size."""
        if not observations:
            return []
        seen = trace(victim)
        targets = [observed_gradient(one) for one in observations]
        known = [
            _labels(victim, seen, one, target, granted)
            for one, target, granted in zip(observations, targets, labels, strict=True)
        ]
        results = [Reconstruction.not_applicable(_NO_LABELS) for _ in observations]
        fits = [index for index, value in enumerate(known) if value is not None]
        pieces = list(self._pieces(victim, seen, [observations[index] for index in fits]))
        for number, piece in enumerate(pieces):
            indices = [fits[position] for position in piece]
            found = self._attack_together(
                victim,
                seen,
                [observations[index] for index in indices],
                [targets[index] for index in indices],
                torch.stack([value for index in indices if (value := known[index]) is not None]),
                generator,
                _share(progress, number, len(pieces)),
            )
            for index, result in zip(indices, found, strict=True):
                results[index] = result
        return results

    def _pieces(self, victim: Victim, seen: Trace, observations: Sequence[Observation]) -> Iterator[list[int]]:
        for group in group_observations(observations):
            batch_size = observations[group[0]].batch_size or 1
            victims = max(1, candidates_at_once(victim.model, seen, batch_size=batch_size) // self.restarts)
            for first in range(0, len(group), victims):
                yield group[first : first + victims]

    def _attack_together(
        self,
        victim: Victim,
        seen: Trace,
        observations: Sequence[Observation],
        targets: Sequence[Gradients],
        labels: Tensor,
        generator: Generator,
        progress: Progress | None,
    ) -> list[Reconstruction]:
        """Attack observations that share weights and batch size; ``labels`` are (victims, batch)."""
        began = time.perf_counter()
        one = observations[0]
        like = next(iter(one.parameters.values()))
        axes = (len(observations), self.restarts, one.batch_size or 1)

        def draw(*shape: int) -> Tensor:
            noise = torch.randn(*axes, *shape, generator=generator, dtype=like.dtype, device=generator.device)
            return noise.to(like.device)

        replay = Replay(victim, one.parameters, one.buffers)
        products = gradient_products(replay, targets, seen, batch_size=axes[2])
        assumed = labels.to(like.device).unsqueeze(1)

        def distance(candidates: Tensor) -> Tensor:
            noise = [draw(latent) for latent in seen.latents]
            return cosine_distance(products(candidates, assumed, noise))

        matched = self._descent().run(
            distance,
            draw(*victim.inputs.shape),
            project=victim.inputs.clamp if self.boxed else None,
            progress=progress,
        )
        seconds = (time.perf_counter() - began) / len(observations)
        return [self._result(matched, index, labels[index], seconds) for index in range(len(observations))]

    def _descent(self) -> Descent:
        return Descent(
            iterations=self.iterations,
            learning_rate=self.learning_rate,
            total_variation=self.total_variation,
            signed=self.signed,
        )

    def _result(self, matched: Matched, index: int, labels: Tensor, seconds: float) -> Reconstruction:
        restart = int(matched.best_restart()[index])
        distance = float(matched.distances[index, restart])
        measured = distance < float("inf")
        outcome = Outcome.CONVERGED if distance < self.converged_below else Outcome.ITERATION_LIMIT
        reason = ""
        if bool(matched.diverged[index, restart]):
            outcome = Outcome.DIVERGED
            kept = "the best iterate before that is kept" if measured else "it was finite at no iterate"
            reason = f"the gradient distance became non-finite in all of {self.restarts} restart(s); {kept}"
        return Reconstruction(
            inputs=matched.candidates[index, restart] if measured else None,
            labels=labels,
            outcome=outcome,
            reason=reason,
            matching_loss=max(0.0, distance) if measured else None,  # rounding may end below zero
            seconds=seconds,
            iterations=matched.iterations,
        )


def _labels(
    victim: Victim, seen: Trace, observation: Observation, target: Gradients, granted: Tensor | None
) -> Tensor | None:
    classes = victim.inputs.classes
    if granted is not None:
        return check_labels(granted, batch_size=observation.batch_size or 1, classes=classes)
    return idlg_label(seen.last_linear(), target, classes=classes) if observation.batch_size == 1 else None


def _share(progress: Progress | None, number: int, pieces: int) -> Callable[[float, float | None], None] | None:
    """Progress of one piece as progress of the whole."""
    if progress is None:
        return None
    report = progress
    return lambda done, best: report((number + done) / pieces, best)


PRESETS: Mapping[str, GradientMatching] = MappingProxyType(
    {
        # Command line defaults of the reference code of Geiping et al.
        "inverting-gradients": GradientMatching(iterations=24_000, learning_rate=0.1, total_variation=1e-4),
        # The notebook of PRECODE (Scheliga et al., WACV 2022): METHODS A2.
        "precode-paper": GradientMatching(iterations=7_000, learning_rate=0.01, total_variation=1e-6),
    }
)
"""Published settings by name."""
