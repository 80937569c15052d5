"""SPEAR: the exact images of a batch from the gradient of a first Linear layer that is followed by a ReLU."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from attacker.analytic.first_linear import PROBES, FirstLinear, first_linear, why_dropped_before, why_no_relu
from attacker.analytic.low_rank import LowRank, factorise
from attacker.analytic.mixed_batch import Mixture, Unmixed
from attacker.analytic.spans.known_pattern import images_of_patterns
from attacker.analytic.spans.observed_layers import two_layers
from attacker.analytic.spans.stacked_layers import stacked_layers
from attacker.analytic.sparse_columns import SparseColumn, SparseColumns
from attacker.attacks.base import Attack, Outcome, Progress, Reconstruction
from attacker.attacks.best_match import replayed_distance
from attacker.attacks.closed_form.label_assignment import labels_of_images
from attacker.attacks.defence_names import BOTTLENECKS, DROPOUT
from attacker.attacks.registration import register_attack
from attacker.gradients.observed import observed_gradient, why_not_one_step
from attacker.gradients.trace import Trace, trace
from attacker.reasons import Reason, because, joined
from attacker.victim import Victim
from fl_precode.observation import Observation

AGREEMENT = 0.95
"""Share of the ReLU pattern that must be explained. Right images leave out entries whose size is that of rounding, and
units that changed sides during several local steps; one wrong column of the mixing spoils about half of some images."""


@register_attack(
    "spear",
    title="SPEAR",
    description="exact images of a batch when the first layer is Linear with a bias and a ReLU",
    source="Dimitrov et al., NeurIPS 2024",
    answers=BOTTLENECKS | DROPOUT,
    oblivious=True,
    rank=40,
    cost=3_000.0,  # reckoned
    exact=True,
    portfolio=4,
)
@dataclass(frozen=True, kw_only=True)
class Spear(Attack):
    """Exact recovery of a batch (Dimitrov et al., SPEAR, NeurIPS 2024).

    The rank of the layer's weight gradient is the number of images, announced or not. See `Mixture` for how the images
    follow from sparse columns, and `SparseColumns` for how these are found. Everything is in float64; images are
    reconstructed in the observation's dtype, neither clamped nor refined, in an order that the gradient does not tell.

    Whatever stands behind the ReLU is irrelevant, a bottleneck included: it changes the gradients at the layer's
    output, and these are unknowns here. So are several local steps: the update is then a sum over images of what each
    moved, zero for units that were off whenever the image was used. Weight decay over several steps adds the weights
    themselves, which is refused.

    Where too few columns are found for the whole batch, those that are tell which units are on for their image. With a
    Linear layer behind the ReLU each of these images follows alone, as in activation-span (`images_of_patterns`), and
    is confirmed by both gradients; the others are NaN.

    What it does not do: without a bias gradient each image would be known up to a factor; noise, pruning or rounding of
    the update hides the rank; an image without a gradient of its own, such as one that repeats, counts with the other.

    Attributes:
        samples: Submatrices whose kernels are taken, at most, 1 or more. A batch of B needs about ``2^(B-1) log(B)``
            where units are on for half of the images, far fewer where they are on for fewer.
        most_images: Largest rank that is taken as a number of images, 1 or more.

    Raises:
        ValueError: If a setting is below 1.
    """

    samples: int = 1_000_000
    most_images: int = 32

    def __post_init__(self) -> None:
        for setting in ("samples", "most_images"):
            if getattr(self, setting) < 1:
                raise ValueError(f"expected {setting} to be 1 or more, got {getattr(self, setting)}")

    @property
    def name(self) -> str:
        """Name in the registry."""
        return "spear"

    def refuses(self, victim: Victim, observation: Observation) -> Reason | None:
        """Reason why the attack cannot fit the observation, or None when it can."""
        if victim.why_no_loss is not None:
            return victim.why_no_loss
        if observation.protocol.weight_decay and why_not_one_step(observation) is not None:
            return because("weight-decay.several-steps")
        model_trace = trace(victim, batch_size=PROBES)
        layer = first_linear(model_trace)
        if isinstance(layer, Reason):
            return layer
        if dropped := why_dropped_before(victim, model_trace, layer):
            return dropped
        size = observation.batch_size
        if size is not None and size > self.most_images:
            return because("too-many-images", most=self.most_images, size=size)
        no_relu = why_no_relu(victim, observation, model_trace, layer)
        if no_relu is not None:
            return no_relu
        factors = self._factors(observation, layer)
        if isinstance(factors, Reason):
            return factors
        if size is not None and factors.rank > size:
            return because("rank-too-high", name=layer.weight, rank=factors.rank, size=size)
        return None

    def run(
        self,
        victim: Victim,
        observations: Sequence[Observation],
        labels: Sequence[Tensor | None],
        generators: Sequence[Generator],
        progress: Progress | None,
    ) -> list[Reconstruction]:
        """One search for each observation."""
        if not observations:
            return []
        model_trace, results = trace(victim, batch_size=PROBES), []
        for index, (observation, granted, generator) in enumerate(zip(observations, labels, generators, strict=True)):
            results.append(self._attack(victim, model_trace, observation, granted, generator))
            if progress is not None:
                progress((index + 1) / len(observations), None)
        return results

    def _factors(self, observation: Observation, layer: FirstLinear) -> LowRank | Reason:
        weight = observed_gradient(observation)[layer.weight]
        return factorise(weight, self.most_images, name=layer.weight, expected=observation.batch_size)

    def _attack(
        self, victim: Victim, model_trace: Trace, observation: Observation, granted: Tensor | None, generator: Generator
    ) -> Reconstruction:
        began = time.perf_counter()
        layer = first_linear(model_trace)
        assert not isinstance(layer, Reason)
        factors = self._factors(observation, layer)
        assert not isinstance(factors, Reason)
        gradient = observed_gradient(observation)
        mixture = Mixture(
            factors=factors,
            bias_gradient=gradient[layer.bias].double(),
            response=factors.right @ observation.parameters[layer.weight].double().T,
            bias=observation.parameters[layer.bias].double(),
        )
        unmixed, reason, candidates = self._search(mixture, generator)
        if unmixed is None:
            result = _some(victim, model_trace, layer, observation, candidates, factors.rank, reason)
        else:
            like = gradient[layer.weight]
            inputs = layer.images(unmixed.inputs, victim).to(like.dtype)
            result = _confirmed(victim, model_trace, layer, observation, inputs, unmixed, granted, generator)
        return replace(result, seconds=time.perf_counter() - began)

    def _search(self, mixture: Mixture, generator: Generator) -> tuple[Unmixed | None, Reason, list[SparseColumn]]:
        """The images' factors, or why they were not found, and the sparse columns that were."""
        latest: list[Unmixed] = []

        def enough(candidates: list[SparseColumn]) -> bool:
            best = mixture.best(candidates, good=AGREEMENT)
            latest[:] = [] if best is None else [best]
            return best is not None and best.agreement >= AGREEMENT

        columns = SparseColumns(mixture.factors.left, mixture.factors.noise)
        seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
        search = columns.search(self.samples, torch.Generator().manual_seed(seed), enough)
        rank, known = mixture.factors.rank, len(search.candidates)
        if not latest:
            reason = because("columns-not-found", known=known, rank=rank, samples=search.samples)
            return None, reason, search.candidates
        if latest[0].agreement >= AGREEMENT:
            return latest[0], Reason(""), search.candidates
        reason = because(
            "columns-not-found.doubtful",
            rank=rank,
            known=known,
            share=latest[0].agreement,
            samples=search.samples,
            enough=AGREEMENT,
        )
        return None, reason, search.candidates


def _some(
    victim: Victim,
    model_trace: Trace,
    layer: FirstLinear,
    observation: Observation,
    candidates: list[SparseColumn],
    rank: int,
    reason: Reason,
) -> Reconstruction:
    """Some images of the batch: those whose units a sparse column tells, by the gradient of the layer behind."""
    nothing = Reconstruction(inputs=None, labels=None, outcome=Outcome.ITERATION_LIMIT, reason=reason)
    pair = stacked_layers(victim, model_trace, layer.module)
    if not candidates or isinstance(pair, Reason) or why_not_one_step(observation) is not None:
        return nothing
    layers = two_layers(observation, pair, rank, expected=rank)
    if isinstance(layers, Reason):
        return nothing
    active = torch.stack([~candidate.zeros for candidate in candidates])
    found, _ = images_of_patterns(layers, active)
    inputs = layer.images(found, victim).to(observation.update[layer.weight].dtype)
    if not len(inputs) or not bool(inputs.isfinite().all()):
        return nothing
    size = observation.batch_size or rank
    gaps = inputs.new_full((max(0, size - len(inputs)), *inputs.shape[1:]), float("nan"))
    words = joined([reason, because("some-images", count=len(inputs), size=size)])
    return replace(nothing, inputs=torch.cat([inputs, gaps]), reason=words)


def _confirmed(
    victim: Victim,
    model_trace: Trace,
    layer: FirstLinear,
    observation: Observation,
    inputs: Tensor,
    unmixed: Unmixed,
    granted: Tensor | None,
    generator: Generator,
) -> Reconstruction:
    """The images with their labels and the distance of their gradient."""
    count = len(inputs)
    whole = observation.batch_size in (None, count)
    reason = "" if whole else because("some-images", count=count, size=observation.batch_size)
    if not bool(inputs.isfinite().all()):
        reason = because("image-not-finite.one")
        return Reconstruction(inputs=None, labels=None, outcome=Outcome.DIVERGED, reason=reason)
    labels = labels_of_images(victim, model_trace, layer, observation, inputs, unmixed.deltas, granted, generator)
    # The order in which several local steps used the images is not known.
    one_step = why_not_one_step(observation) is None
    distance = replayed_distance(victim, model_trace, observation, inputs, labels) if one_step else None
    return Reconstruction(
        inputs=inputs, labels=labels, outcome=Outcome.CONVERGED, reason=reason, matching_loss=distance
    )
