"""Activation span: the images of a batch from two stacked Linear layers with a smooth activation between them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from attacker.analytic.first_linear import PROBES, FirstLinear, first_linear, why_dropped_before
from attacker.analytic.spans.batch_search import BatchInputs, find_inputs
from attacker.analytic.spans.confirmation import unexplained
from attacker.analytic.spans.observed_layers import two_layers, why_no_room
from attacker.analytic.spans.stacked_layers import StackedLayers, stacked_layers
from attacker.analytic.spans.token_batch import perceptron_of_block
from attacker.analytic.spans.two_spans import TwoLayers
from attacker.attacks.base import Attack, Outcome, Progress, Reconstruction
from attacker.attacks.best_match import replayed_distance
from attacker.attacks.closed_form.label_assignment import labels_of_images
from attacker.attacks.closed_form.token_images import images_of_tokens, token_problem
from attacker.attacks.defence_names import BOTTLENECKS, DROPOUT, SCALING
from attacker.attacks.registration import register_attack
from attacker.gradients.observed import midway, observed_gradient, steps_behind, why_not_one_step
from attacker.gradients.trace import Trace, trace
from attacker.gradients.uncompared_parameters import owns
from attacker.reasons import Reason, because, joined
from attacker.victim import Victim
from fl_precode.observation import Observation

EXPLAINED = 0.02
"""Share of the first layer's gradient that a whole batch may leave over; a single wrong image leaves more."""


CLOSE = 1e-3
"""Distance of the replayed local steps below which what was found half way counts as confirmed."""


@register_attack(
    "activation-span",
    title="activation span",
    description="images of a batch behind two Linear layers with a smooth activation, or behind a transformer's first "
    "block",
    source="this project",
    answers=BOTTLENECKS | DROPOUT | SCALING,
    oblivious=True,
    rank=45,
    cost=5.0,  # 1 to 20 on ViT-B/32; 15 to 100 of a perceptron, which are milliseconds each. It ends in time
    exact=True,
    portfolio=11,
)
@dataclass(frozen=True, kw_only=True)
class ActivationSpan(Attack):
    """Images of a batch that lie in the row space of the first layer's gradient, and their activations in the second's.

    Both spaces have as many dimensions as there are images, the number of units is far larger, and activations are not
    linear: so the images themselves are the only points of the one space whose activations lie in the other. They are
    searched by Levenberg-Marquardt from random points; what is found is taken out of both gradients exactly, so that
    the next search finds another one (`attacker.analytic.spans`). No labels, no sparsity and no size of the batch are
    needed, and whatever stands behind the second layer is irrelevant, a bottleneck included.

    Of a vision transformer the perceptron of the first block is such a pair, and its inputs are the tokens of all
    images. These are found likewise and followed to the pixels (`attacker.analytic.tokens`) as long as there are fewer
    of them than the width: output gradients, the norm's scale, what the attention gave, places by the constants of the
    embedding, images by the attention, each step with its residual in the reason.

    Several announced steps of SGD on one batch are taken as one gradient half way (`midway`).

    Images that are found count, whether all are or not: missing ones are NaN. A result is called converged where as
    many were found as the gradients have directions above their noise, and where these, with the gradients that the
    second layer sends back to them, give the first layer's gradient again up to `EXPLAINED`.

    Attributes:
        most_images: Largest rank that is taken as a number of images, 1 or more.
        starts: Searches in a row that may fail before the rest is given up, 1 or more.
        steps: Steps of each search, 1 or more.

    Raises:
        ValueError: If a setting is below 1.
    """

    most_images: int = 160
    starts: int = 384
    steps: int = 40

    def __post_init__(self) -> None:
        for setting in ("most_images", "starts", "steps"):
            if getattr(self, setting) < 1:
                raise ValueError(f"expected {setting} to be 1 or more, got {getattr(self, setting)}")

    @property
    def name(self) -> str:
        """Name in the registry."""
        return "activation-span"

    def refuses(self, victim: Victim, observation: Observation) -> Reason | None:
        """Reason why the attack cannot fit the observation, or None when it can."""
        several, there = why_not_one_step(observation), midway(observation)
        if several is not None and there is None:
            return several
        observation = there or observation
        size = observation.batch_size
        if size is not None and size > self.most_images:
            return because("too-many-images", most=self.most_images, size=size)
        model_trace = trace(victim, batch_size=PROBES)
        found = _found_layers(victim, model_trace)
        if isinstance(found, Reason):
            return self._why_no_tokens(victim, model_trace, observation, found)
        layers = _two_layers(observation, found[1], self.most_images)
        if isinstance(layers, Reason):
            return layers
        return why_no_room(layers, found[1], observation.batch_size)

    def _why_no_tokens(
        self, victim: Victim, model_trace: Trace, observation: Observation, otherwise: Reason
    ) -> Reason | None:
        """Why a model whose first layer is no Linear one has no tokens to search either, or None when it has."""
        pair = perceptron_of_block(victim, model_trace)
        if isinstance(pair, Reason):
            return pair if pair.code == "second-layer-behind-dropout" else otherwise
        problem = token_problem(victim, model_trace, observation)
        return problem if isinstance(problem, Reason) else None

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
            began = time.perf_counter()
            there = midway(observation)
            result = self._attack(victim, model_trace, there or observation, granted, generator)
            if there is not None:
                result = _of_several_steps(victim, model_trace, observation, result)
            results.append(replace(result, seconds=time.perf_counter() - began))
            if progress is not None:
                progress((index + 1) / len(observations), None)
        return results

    def _attack(
        self, victim: Victim, model_trace: Trace, observation: Observation, granted: Tensor | None, generator: Generator
    ) -> Reconstruction:
        found = _found_layers(victim, model_trace)
        seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
        source = torch.Generator().manual_seed(seed)
        if isinstance(found, Reason):
            problem = token_problem(victim, model_trace, observation)
            assert not isinstance(problem, Reason)  # the others are refused
            patience, steps = self.starts, self.steps
            return images_of_tokens(
                victim, model_trace, observation, problem, granted, source, patience=patience, steps=steps
            )
        layer, _ = found
        layers = _two_layers(observation, found[1], self.most_images)
        assert not isinstance(layers, Reason)
        batch = find_inputs(layers, source, patience=self.starts, steps=self.steps)
        gradient = observed_gradient(observation)[layer.weight]
        inputs = layer.images(batch.inputs, victim).to(gradient.dtype)
        if not bool(inputs.isfinite().all()):
            reason = because("image-not-finite.one")
            return Reconstruction(inputs=None, labels=None, outcome=Outcome.DIVERGED, reason=reason)
        size = observation.batch_size or batch.rank
        outcome, reason = _judged(batch, gradient.double(), layer, size)
        if not len(inputs):
            return Reconstruction(inputs=None, labels=None, outcome=outcome, reason=reason)
        if len(inputs) < size:
            return Reconstruction(inputs=_with_gaps(inputs, size), labels=None, outcome=outcome, reason=reason)
        known, distance = None, None
        if victim.why_no_loss is None:
            deltas = torch.stack([one.inner for one in batch.backward])
            known = labels_of_images(victim, model_trace, layer, observation, inputs, deltas, granted, generator)
            distance = replayed_distance(victim, model_trace, observation, inputs, known)
        return Reconstruction(inputs=inputs, labels=known, outcome=outcome, reason=reason, matching_loss=distance)


def _two_layers(observation: Observation, pair: StackedLayers, most: int) -> TwoLayers | Reason:
    several = why_not_one_step(observation) is not None
    return two_layers(observation, pair, most, expected=observation.batch_size, exactly=several)


def _of_several_steps(
    victim: Victim, model_trace: Trace, observation: Observation, result: Reconstruction
) -> Reconstruction:
    """The result with the distance of the steps themselves; nothing else confirms what was found half way."""
    if result.inputs is None:
        return result
    distance = None
    if result.labels is not None:
        distance = replayed_distance(victim, model_trace, observation, result.inputs, result.labels)
    close = distance is not None and distance < CLOSE
    reason = joined([result.reason, because("steps-half-way", steps=steps_behind(observation))])
    outcome = result.outcome if close else Outcome.ITERATION_LIMIT
    return replace(result, outcome=outcome, reason=reason, matching_loss=distance)


def _found_layers(victim: Victim, model_trace: Trace) -> tuple[FirstLinear, StackedLayers] | Reason:
    """The first layer, which sees the image, and the pair that it begins; or why there is none."""
    layer = first_linear(model_trace, any_bias=True)
    if isinstance(layer, Reason):
        return layer
    if dropped := why_dropped_before(victim, model_trace, layer):
        return dropped
    pair = stacked_layers(victim, model_trace, layer.module)
    if isinstance(pair, Reason):
        return pair
    if not owns(layer.module, "bias") and pair.keeps_factors():
        return because("first-layer-without-bias", name=pair.first)
    return layer, pair


def _judged(batch: BatchInputs, gradient: Tensor, layer: FirstLinear, size: int) -> tuple[Outcome, Reason]:
    """How the search ended, and what there is to say of it."""
    count, words = len(batch.inputs), []
    if count < batch.rank:
        words = [because("inputs-not-found", found=count, rank=batch.rank, starts=batch.starts)]
        return Outcome.ITERATION_LIMIT, joined(words)
    if count < size:
        words.append(because("some-images", count=count, size=size))
    left = unexplained(gradient, torch.stack([one.inner for one in batch.backward]), batch.inputs)
    if left > EXPLAINED:
        words.append(because("update-not-explained", name=layer.weight, residual=left, count=count))
    return (Outcome.ITERATION_LIMIT if left > EXPLAINED else Outcome.CONVERGED), joined(words)


def _with_gaps(inputs: Tensor, size: int) -> Tensor:
    """As many images as the batch has, NaN where none was found."""
    missing = inputs.new_full((size - len(inputs), *inputs.shape[1:]), float("nan"))
    return torch.cat([inputs, missing])
