"""Layer-wise inversion: no search, one linear system for each layer from the classifier down to the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Generator, Tensor

from attacker.attacks.base import Attack, Outcome, Progress, Reconstruction
from attacker.attacks.closed_form.estimate import Estimate, estimates, why_not_invertible
from attacker.attacks.known_labels import check_labels
from attacker.attacks.registration import register_attack
from attacker.reasons import Reason, because, joined
from attacker.victim import Victim
from fl_precode.observation import Observation


@register_attack(
    "layerwise-inversion",
    title="layer-wise inversion",
    description="one linear system for each layer: exact for one image where their equations suffice",
    source="Zhu, Blaschko, ICLR 2021; Chen, Campbell, arXiv 2111.10178",
    rank=30,
    cost=150.0,
    exact=True,
    portfolio=2,
    colour="#1d63b8",
)
@dataclass(frozen=True, kw_only=True)
class LayerwiseInversion(Attack):
    """Recover every layer's input from its output and its gradient, starting at a fully connected layer.

    R-GAP (Zhu, Blaschko, ICLR 2021, arXiv 2010.07733) and its extension to softmax classifiers (Chen, Campbell,
    arXiv 2111.10178): the gradient of a Linear layer with a bias tells what entered it and the gradient of the loss
    there; activations are inverted; the input of a convolution solves its forward equations and those of its weight
    gradient together. Biases, strides, padding, groups and dilation are taken into account; systems are solved without
    forming them, in float64, all updates together. The first Linear layer with a bias is where it starts: what stands
    behind that layer does not matter.

    Fits one image and one step, and layers up to the start that stand in a chain: Conv2d, Linear, LeakyReLU, tanh,
    sigmoid, softplus, ELU, batch normalisation by running statistics; ReLU, dropout and average pooling tell part of
    their input, the rest is as small as possible. The image is exact up to rounding where every layer has as many
    independent equations as unknowns: then the outcome is "converged". Otherwise, and with noise on the update,
    `Reconstruction.reason` says which layer falls short, and how well its equations hold.

    ``matching_loss`` is ``|g(x) - g*|^2 / |g*|^2`` over the layers that were inverted and the features.
    """

    @property
    def name(self) -> str:
        """Name in the registry."""
        return "layerwise-inversion"

    def refuses(self, victim: Victim, observation: Observation) -> Reason | None:
        """Reason why the attack cannot fit the observation, or None when it can."""
        return why_not_invertible(victim, observation)

    def run(
        self,
        victim: Victim,
        observations: Sequence[Observation],
        labels: Sequence[Tensor | None],
        generators: Sequence[Generator],
        progress: Progress | None,
    ) -> list[Reconstruction]:
        """Solve; consumes no randomness."""
        return reconstructions(victim, estimates(victim, observations), observations, labels, progress)


def reconstructions(
    victim: Victim,
    solutions: Sequence[Estimate],
    observations: Sequence[Observation],
    granted: Sequence[Tensor | None],
    progress: Progress | None,
) -> list[Reconstruction]:
    """Results of all observations, in order, in their dtype."""
    results: dict[int, Reconstruction] = {}
    for estimate in solutions:
        for place, index in enumerate(estimate.indices):
            like = next(iter(observations[index].update.values()))
            results[index] = _result(victim, estimate, place, granted[index], like)
        if progress is not None:
            progress(len(results) / len(observations), None)
    return [results[index] for index in range(len(observations))]


def labels_of(estimate: Estimate, place: int, granted: Tensor | None, *, classes: int) -> Tensor | None:
    """Those that were granted, else those that the update tells."""
    return estimate.labels[place] if granted is None else check_labels(granted, batch_size=1, classes=classes)


def _result(victim: Victim, estimate: Estimate, place: int, granted: Tensor | None, like: Tensor) -> Reconstruction:
    labels = labels_of(estimate, place, granted, classes=victim.label_numbers)
    inputs = estimate.inputs[place : place + 1].to(like.dtype)
    if not bool(inputs.isfinite().all()):
        reason = joined([because("image-not-finite"), estimate.words(place)])
        return Reconstruction(inputs=None, labels=labels, outcome=Outcome.DIVERGED, reason=reason)
    return Reconstruction(
        inputs=inputs,
        labels=labels,
        outcome=Outcome.CONVERGED if estimate.exact(place) else Outcome.ITERATION_LIMIT,
        reason=estimate.words(place),
        matching_loss=float(estimate.distances[place]),
        seconds=estimate.seconds,
    )
