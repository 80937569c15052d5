"""Hybrid: linear systems where they determine a layer's input, a search among what they leave open where not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from attacker.attacks.base import Attack, Progress, Reconstruction
from attacker.attacks.best_match import EXACT_BELOW
from attacker.attacks.closed_form.estimate import Estimate, any_entrance
from attacker.attacks.closed_form.refinement import StartingImages, run_from_estimates, valid_start
from attacker.attacks.defence_names import PRECODE
from attacker.attacks.registration import register_attack
from attacker.optim.tv_gauss_newton import refine_smoothly
from attacker.reasons import Reason, because
from attacker.victim import Victim
from fl_precode.observation import Observation


@register_attack(
    "hybrid",
    title="Hybrid",
    description="layer-wise inversion; where equations fall short, the smoothest image that gives the update",
    source="after Chen, Campbell, arXiv 2111.10178",
    answers=PRECODE,
    rank=50,
    cost=300.0,
    colour="#0f766e",
)
@dataclass(frozen=True, kw_only=True)
class Hybrid(Attack):
    """Layer-wise inversion, and for updates whose equations fall short the smoothest image that gives the update.

    After Chen, Campbell (arXiv 2111.10178), who correct each layer's estimate by gradient matching on the layers from
    there on. A layer's input is left open by its own equations only; those of earlier layers constrain it too, and
    matching the layers from there on adds nothing to its equations but the prior. So the image itself is sought here,
    with the gradients of all layers as equations: total variation plus the squared relative residual of each tensor,
    whose weight rises until the equations hold, by Gauss-Newton with reweighted squares, within valid images.

    Where every layer is determined the estimate is returned as it is: a prior would only spoil it. The searched image
    is kept if it gives the update at least as well as the estimate moved onto valid images, or to `EXACT_BELOW`.
    Bottlenecks are entered at their encoder, as `ThroughBottleneck` does. Fits what that and `LayerwiseInversion` fit.

    Attributes:
        steps: Least-squares problems that are solved, 1 or more.
        inner: Iterations of each, 1 or more.

    Raises:
        ValueError: If a setting is out of its range.
    """

    steps: int = 30
    inner: int = 150

    def __post_init__(self) -> None:
        check_positive(steps=self.steps, inner=self.inner)

    @property
    def name(self) -> str:
        """Name in the registry."""
        return "hybrid"

    def refuses(self, victim: Victim, observation: Observation) -> Reason | None:
        """Reason why the attack cannot fit the observation, or None when it can."""
        return any_entrance(victim, observation)[1]

    def run(
        self,
        victim: Victim,
        observations: Sequence[Observation],
        labels: Sequence[Tensor | None],
        generators: Sequence[Generator],
        progress: Progress | None,
    ) -> list[Reconstruction]:
        """Solve and search; consumes no randomness."""

        def improve(
            estimate: Estimate,
            updates: Sequence[Observation],
            granted: Sequence[Tensor | None],
            sources: Sequence[Generator],
        ) -> list[StartingImages]:
            del updates, granted, sources
            return self._improve(victim, estimate)

        return run_from_estimates(victim, observations, labels, generators, progress, improve)

    def _improve(self, victim: Victim, estimate: Estimate) -> list[StartingImages]:
        given = StartingImages(words=None, inputs=estimate.inputs, distances=estimate.distances, steps=0)
        open_ = torch.tensor([not estimate.determined(place) for place in range(len(estimate.inputs))])
        if not bool(open_.any()):
            return [given]
        start, replay = valid_start(victim, estimate), estimate.replay
        solution = refine_smoothly(
            replay.relative_residual,
            start.inputs,
            steps=self.steps,
            inner=self.inner,
            project=victim.inputs.clamp,
            pixels=victim.inputs.denormalise,
        )
        distances = replay.distances(solution.x)
        open_ = open_.to(distances.device)
        # A minimum-norm estimate gives the update to rounding and is no image: what is as good as exact competes by
        # being one. Determined victims keep their estimate.
        taken = open_ & (distances < start.distances.clamp_min(EXACT_BELOW))
        searched = StartingImages(
            words=because("estimate-smooth"),
            inputs=solution.x,
            distances=torch.where(taken, distances, torch.inf),
            steps=solution.steps,
        )
        other = replace(given, distances=torch.where(taken, torch.inf, given.distances))
        return [other, searched]


def check_positive(**settings: int) -> None:
    """Refuse settings below 1.

    Raises:
        ValueError: Naming the first.
    """
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"expected {name} to be a whole number from 1 on, got {value!r}")
