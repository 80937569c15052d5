"""The transformer's side of activation-span: tokens of the first block are searched, and followed to the images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from attacker.analytic.spans.batch_search import BatchInputs, find_inputs
from attacker.analytic.spans.observed_layers import two_layers
from attacker.analytic.spans.two_spans import TwoLayers
from attacker.analytic.tokens.batch_images import BatchImages, images_of_batch
from attacker.analytic.tokens.first_block import FirstBlock, first_block
from attacker.attacks.base import Outcome, Reconstruction
from attacker.attacks.best_match import EXACT_BELOW, replayed_distance
from attacker.attacks.closed_form.label_assignment import labels_by_head
from attacker.gradients.observed import observed_gradient, why_not_one_step
from attacker.gradients.trace import Trace
from attacker.reasons import Reason, because, joined
from attacker.victim import Victim
from fl_precode.observation import Observation


@dataclass(frozen=True, kw_only=True)
class TokenProblem:
    """What an update says of the tokens of the first block.

    Attributes:
        block: The block.
        layers: Its perceptron's two layers with their gradients.
        size: Number of images, None where it is not announced.
        each: Tokens of an image.
    """

    block: FirstBlock
    layers: TwoLayers
    size: int | None
    each: int


def token_problem(victim: Victim, model_trace: Trace, observation: Observation) -> TokenProblem | Reason:
    """The problem, or why tokens are not told apart or cannot be followed to pixels.

    Args:
        victim: Public knowledge about the model.
        model_trace: A trace of the model.
        observation: The update.
    """
    block = first_block(victim, model_trace, observation)
    if isinstance(block, Reason):
        return block
    if block.attention.out_weight not in observation.update:
        return because("token-block-frozen", name=block.attention.out_weight)
    each, most, size = len(block.embedding.constants), block.width - 1, observation.batch_size
    if (size or 1) * each > most:
        return because(
            "tokens-fill-width",
            size=size or 1,
            tokens=(size or 1) * each,
            width=block.width,
            most=most,
            images=most // each,
            each=each,
        )
    several = why_not_one_step(observation) is not None
    expected = None if size is None else size * each
    layers = two_layers(observation, block.layers, most, expected=expected, exactly=several)
    if isinstance(layers, Reason):
        return layers
    if size is not None and layers.first.rank > size * each:
        name = block.layers.parameter(block.layers.first, "weight")
        return because("rank-too-high.tokens", name=name, rank=layers.first.rank, tokens=size * each, size=size)
    units = len(layers.weight)
    if layers.first.rank + layers.second.rank > units:
        return because("rank-fills-width.units", rank=layers.first.rank, units=units)
    return TokenProblem(block=block, layers=layers, size=size, each=each)


def images_of_tokens(
    victim: Victim,
    model_trace: Trace,
    observation: Observation,
    problem: TokenProblem,
    granted: Tensor | None,
    source: Generator,
    *,
    patience: int,
    steps: int,
) -> Reconstruction:
    """Search the tokens, and follow them.

    Args:
        victim: Public knowledge about the model.
        model_trace: A trace of the model.
        observation: The update.
        problem: As `token_problem` gives it.
        granted: (batch,) labels, or None.
        source: Source of starts.
        patience: Searches in a row that may fail.
        steps: Steps of each search.
    """
    found = find_inputs(problem.layers, source, patience=patience, steps=steps)
    missing = because("inputs-not-found.tokens", found=len(found.inputs), rank=found.rank, starts=found.starts)
    words = [missing] if len(found.inputs) < found.rank else []
    if len(found.inputs) < problem.each // 2:
        return Reconstruction(inputs=None, labels=None, outcome=Outcome.ITERATION_LIMIT, reason=joined(words))
    gradient, block = observed_gradient(observation), problem.block
    traced = images_of_batch(
        block,
        problem.layers,
        found.inputs,
        gradient[block.attention.out_weight],
        gradient.get(block.patches.weight),
        size=problem.size,
    )
    if isinstance(traced, Reason):
        reason = joined([*words, traced])
        return Reconstruction(inputs=None, labels=None, outcome=Outcome.ITERATION_LIMIT, reason=reason)
    return _result(victim, model_trace, observation, problem, found, traced, granted)


def _result(
    victim: Victim,
    model_trace: Trace,
    observation: Observation,
    problem: TokenProblem,
    found: BatchInputs,
    traced: BatchImages,
    granted: Tensor | None,
) -> Reconstruction:
    size = problem.size or len(traced.images)
    count = int(traced.confirmed.sum())
    residuals = ", ".join(f"{name} {value:.1e}" for name, value in traced.residuals.items())
    words = [because("tokens-to-images", found=len(found.inputs), count=count, size=size, residuals=residuals)]
    if len(found.inputs) < found.rank:
        words.insert(
            0, because("inputs-not-found.tokens", found=len(found.inputs), rank=found.rank, starts=found.starts)
        )
    dtype = (
        observation.update[problem.block.patches.weight].dtype
        if problem.block.patches.weight in (observation.update)
        else next(iter(observation.update.values())).dtype
    )
    inputs = traced.images.to(dtype)
    if not bool(inputs.isfinite().all()):
        reason = joined([*words, because("image-not-finite.one")])
        return Reconstruction(inputs=None, labels=None, outcome=Outcome.DIVERGED, reason=reason)
    labels, distance = None, None
    if len(inputs) == size:
        labels = labels_by_head(victim, model_trace, observation, inputs, granted)
        if labels is not None:
            distance = replayed_distance(victim, model_trace, observation, inputs, labels)
    else:
        words.append(because("some-images", count=len(inputs), size=size))
        gap = inputs.new_full((size - len(inputs), *inputs.shape[1:]), float("nan"))
        inputs = torch.cat([inputs, gap])
    exact = count == size or (distance is not None and distance < EXACT_BELOW)
    outcome = Outcome.CONVERGED if exact else Outcome.ITERATION_LIMIT
    return Reconstruction(inputs=inputs, labels=labels, outcome=outcome, reason=joined(words), matching_loss=distance)
