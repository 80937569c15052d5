"""Then refine: the analytic image as the start of a least-squares search, which noise does not derail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from attacker.attacks.attack import Attack, Progress, Reconstruction
from attacker.attacks.chain_inversion import Estimate, any_entrance
from attacker.attacks.contest import EXACT_BELOW
from attacker.attacks.gradient_matching import GradientMatching
from attacker.attacks.hybrid import check_positive
from attacker.attacks.refined import Candidate, run_from_estimates, valid_start
from attacker.engine.gauss_newton import refine
from attacker.victim import Victim
from fl_precode.observation import Observation


@dataclass(frozen=True, kw_only=True)
class ThenRefine(Attack):
    """Layer-wise inversion, then Gauss-Newton from its image on the gradients of all layers that were inverted.

    The equations of a layer take what was recovered behind it for exact, so that rounding and noise grow from layer to
    layer. The search weighs all gradients together by least squares, which is the likeliest image under Gaussian noise;
    inner solves that stop early leave out what noise would decide. Nothing behind the start of the inversion is
    replayed, a bottleneck's noise included. Where the result does not give the update to `EXACT_BELOW`, plain gradient
    matching (Inverting Gradients) competes; the image that gives the update best wins.

    Fits what `LayerwiseInversion` and `ThroughBottleneck` fit.

    Attributes:
        steps: Of Gauss-Newton at most, 1 or more.
        inner: Iterations of each step's least squares, 1 or more: more reach weaker directions, of images and of noise.
        iterations: Of plain gradient matching; 0 leaves it out.

    Raises:
        ValueError: If a setting is out of its range.
    """

    steps: int = 6
    inner: int = 400
    iterations: int = 600

    def __post_init__(self) -> None:
        check_positive(
            steps=self.steps, inner=self.inner, **({"iterations": self.iterations} if self.iterations else {})
        )

    @property
    def name(self) -> str:
        """Name in the registry."""
        return "then-refine"

    def refuses(self, victim: Victim, observation: Observation) -> str | None:
        """Why the attack cannot fit the observation, or None when it can."""
        return any_entrance(victim, observation)[1]

    def run(
        self,
        victim: Victim,
        observations: Sequence[Observation],
        labels: Sequence[Tensor | None],
        generator: Generator,
        progress: Progress | None,
    ) -> list[Reconstruction]:
        """Solve, search, and match where it is needed."""

        def improve(
            estimate: Estimate, own: Sequence[Observation], granted: Sequence[Tensor | None], generator: Generator
        ) -> list[Candidate]:
            return self._improve(victim, estimate, own, granted, generator)

        return run_from_estimates(victim, observations, labels, generator, progress, improve)

    def _improve(
        self,
        victim: Victim,
        estimate: Estimate,
        own: Sequence[Observation],
        granted: Sequence[Tensor | None],
        generator: Generator,
    ) -> list[Candidate]:
        given = Candidate(words="", inputs=estimate.inputs, distances=estimate.distances, steps=0)
        replay, start = estimate.replay, valid_start(victim, estimate)
        found = refine(replay.residual, start.inputs, steps=self.steps, inner=self.inner, project=victim.inputs.clamp)
        refined = Candidate(words="refined", inputs=found.x, distances=replay.distances(found.x), steps=found.steps)
        candidates = [given, start, refined]
        if self.iterations and bool((torch.minimum(given.distances, refined.distances) > EXACT_BELOW).any()):
            candidates.append(self._plain(victim, estimate, own, granted, generator))
        return candidates

    def _plain(
        self,
        victim: Victim,
        estimate: Estimate,
        own: Sequence[Observation],
        granted: Sequence[Tensor | None],
        generator: Generator,
    ) -> Candidate:
        labels = [found if known is None else known for known, found in zip(granted, estimate.labels, strict=True)]
        results = GradientMatching(iterations=self.iterations)(victim, own, generator=generator, labels=labels)
        shape = victim.inputs.shape
        images = [torch.zeros(1, *shape) if one.inputs is None else one.inputs for one in results]
        inputs = torch.cat([image.to(estimate.inputs) for image in images])
        distances = estimate.replay.distances(inputs)
        missing = torch.tensor([one.inputs is None for one in results], device=distances.device)
        return Candidate(
            words="plain gradient matching",
            inputs=inputs,
            distances=torch.where(missing, torch.inf, distances),
            steps=self.iterations,
        )
