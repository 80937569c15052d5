"""Then refine: the analytic image as the start of a least-squares search, which noise does not derail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from attacker.attacks.base import Attack, Progress, Reconstruction
from attacker.attacks.best_match import EXACT_BELOW
from attacker.attacks.closed_form.estimate import Estimate, any_entrance
from attacker.attacks.closed_form.hybrid import check_positive
from attacker.attacks.closed_form.refinement import StartingImages, run_from_estimates, valid_start
from attacker.attacks.defence_names import PRECODE
from attacker.attacks.gradient_matching.attack import GradientMatching
from attacker.attacks.gradient_matching.parts import Adam
from attacker.attacks.registration import register_attack
from attacker.gradients.distances import total_variation
from attacker.optim.gauss_newton import refine
from attacker.reasons import Reason, because
from attacker.victim import Victim
from fl_precode.observation import Observation

_DECISIVE = 0.25
"""Of a squared distance: half of the residual."""


@register_attack(
    "then-refine",
    title="layer-wise inversion, refined",
    description="layer-wise inversion, then least squares on all gradients from there: noise and rounding",
    source="this project; Zhu, Blaschko, ICLR 2021",
    answers=PRECODE,
    rank=60,
    cost=700.0,
    colour="#b3261e",
)
@dataclass(frozen=True, kw_only=True)
class ThenRefine(Attack):
    """Layer-wise inversion, then Gauss-Newton from its image on the gradients of all layers that were inverted.

    The equations of a layer take what was recovered behind it for exact, so that rounding and noise grow from layer to
    layer. The search weighs all gradients together by least squares, which is the likeliest image under Gaussian noise;
    inner solves that stop early leave out what noise would decide. Nothing behind the start of the inversion is
    replayed, a bottleneck's noise included. Where the result does not give the update to `EXACT_BELOW`, plain gradient
    matching (Inverting Gradients) competes.

    A searched image replaces the analytic one only if it leaves at most half of the residual. Searches lower what they
    minimise, whether the image gets better or not: where no image gives the update (ReLU, whose kinks stop them),
    slightly smaller residuals were measured to cost up to 7 dB. Of two searches the later one must halve the residual
    again; least squares comes first where every layer is determined, plain matching with its prior where not.

    An estimate that fits worse than a grey image is worth no protection: noise has decided it, and what starts from it.
    Of all candidates whose residual is at most twice the smallest the smoothest is then taken, as a prior would.

    Fits what `LayerwiseInversion` and `ThroughBottleneck` fit.

    Attributes:
        steps: Steps of Gauss-Newton at most, 1 or more.
        inner: Iterations of each step's least squares, 1 or more: more reach weaker directions, of images and of noise.
        iterations: Iterations of plain gradient matching; 0 leaves it out.

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
        """Solve, search, and match where it is needed."""

        def improve(
            estimate: Estimate,
            updates: Sequence[Observation],
            granted: Sequence[Tensor | None],
            sources: Sequence[Generator],
        ) -> list[StartingImages]:
            return self._improve(victim, estimate, updates, granted, sources)

        return run_from_estimates(victim, observations, labels, generators, progress, improve)

    def _improve(
        self,
        victim: Victim,
        estimate: Estimate,
        updates: Sequence[Observation],
        granted: Sequence[Tensor | None],
        generators: Sequence[Generator],
    ) -> list[StartingImages]:
        given = StartingImages(words=None, inputs=estimate.inputs, distances=estimate.distances, steps=0)
        replay, start = estimate.replay, valid_start(victim, estimate)
        solution = refine(
            replay.residual, start.inputs, steps=self.steps, inner=self.inner, project=victim.inputs.clamp
        )
        refined = StartingImages(
            words=because("estimate-refined"),
            inputs=solution.x,
            distances=replay.distances(solution.x),
            steps=solution.steps,
        )
        searched = [refined]
        if self.iterations and bool((torch.minimum(given.distances, refined.distances) > EXACT_BELOW).any()):
            searched.append(self._plain(victim, estimate, updates, granted, generators))
        determined = [estimate.determined(place) for place in range(len(updates))]
        grey = victim.inputs.normalise(torch.full_like(estimate.inputs, 0.5))
        worthless = torch.minimum(given.distances, start.distances) > replay.distances(grey)
        kept = [given, start, *_decisive(given, start, searched, determined)]
        return [
            _chosen(candidate, smooth, worthless)
            for candidate, smooth in zip(kept, _smoothest([given, start, *searched], victim), strict=True)
        ]

    def _plain(
        self,
        victim: Victim,
        estimate: Estimate,
        updates: Sequence[Observation],
        granted: Sequence[Tensor | None],
        generators: Sequence[Generator],
    ) -> StartingImages:
        labels = [
            recovered if known is None else known for known, recovered in zip(granted, estimate.labels, strict=True)
        ]
        search = GradientMatching(optimiser=Adam(iterations=self.iterations))
        results = search(victim, updates, generator=generators, labels=labels)
        shape = victim.inputs.shape
        images = [torch.zeros(1, *shape) if result.inputs is None else result.inputs for result in results]
        inputs = torch.cat([image.to(estimate.inputs) for image in images])
        distances = estimate.replay.distances(inputs)
        missing = torch.tensor([result.inputs is None for result in results], device=distances.device)
        return StartingImages(
            words=because("plain-matching"),
            inputs=inputs,
            distances=torch.where(missing, torch.inf, distances),
            steps=self.iterations,
        )


def _decisive(
    given: StartingImages, start: StartingImages, searched: Sequence[StartingImages], determined: Sequence[bool]
) -> list[StartingImages]:
    """The searched candidates, with infinite distances for victims whose residual they do not halve.

    Args:
        given: The analytic images.
        start: The same, moved onto valid images.
        searched: Least squares, then plain matching where it was tried.
        determined: Whether every layer is, for each victim.
    """
    kept = torch.full((len(searched), len(determined)), torch.inf).to(given.distances)
    for victim, sure in enumerate(determined):
        least = min(float(candidate.distances[victim].nan_to_num(torch.inf)) for candidate in (given, start))
        places = range(len(searched))
        taken = None
        for place in places if sure else reversed(places):
            distance = float(searched[place].distances[victim])
            if distance <= _DECISIVE * least:
                least, taken = distance, place
        if taken is not None:
            kept[taken, victim] = least
    return [replace(candidate, distances=row) for candidate, row in zip(searched, kept, strict=True)]


def _smoothest(candidates: Sequence[StartingImages], victim: Victim) -> list[StartingImages]:
    """For each victim the smoothest of those that fit nearly as well as the best; infinite distances for the others."""
    distances = torch.stack([candidate.distances for candidate in candidates]).nan_to_num(torch.inf)
    fits = distances <= distances.amin(dim=0) / _DECISIVE
    images = [victim.inputs.clamp(candidate.inputs.nan_to_num(0.0, 0.0, 0.0)) for candidate in candidates]
    rough = total_variation(torch.stack(images).unsqueeze(2)).to(distances)
    taken = torch.where(fits, rough, torch.inf).argmin(dim=0)
    left = torch.full_like(distances, torch.inf)
    places = torch.arange(distances.shape[1], device=distances.device)
    left[taken, places] = distances[taken, places]
    return [replace(candidate, distances=row) for candidate, row in zip(candidates, left, strict=True)]


def _chosen(usual: StartingImages, smooth: StartingImages, worthless: Tensor) -> StartingImages:
    """The distances of the second where the estimate was worth nothing, else those of the first."""
    return replace(usual, distances=torch.where(worthless, smooth.distances, usual.distances))
