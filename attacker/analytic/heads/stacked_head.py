"""Inputs of a head of several layers for each image: the spans of its first two layers separate the images."""

from __future__ import annotations

from typing import Final

import torch
from torch import Generator

from attacker.analytic.heads.batch_features import BatchFeatures
from attacker.analytic.heads.trained_head import TrainedHead, images_behind, why_no_softmax
from attacker.analytic.spans.batch_search import find_inputs
from attacker.analytic.spans.confirmation import unexplained
from attacker.analytic.spans.observed_layers import two_layers, why_no_room
from attacker.analytic.spans.stacked_layers import stacked_layers
from attacker.analytic.spans.two_spans import TwoLayers
from attacker.gradients.observed import observed_gradient, why_not_one_step
from attacker.gradients.trace import trace
from attacker.gradients.uncompared_parameters import owns
from attacker.reasons import Reason, because
from attacker.victim import Victim
from fl_precode.observation import Observation

MOST: Final = 160
"""Largest rank that is taken as a number of images."""

EXPLAINED: Final = 0.02
"""Share of the head's gradient that the features of all images may leave over; a single wrong image leaves more."""


def why_not_read(victim: Victim, head: TrainedHead, observation: Observation) -> Reason | None:
    """Why the head's gradient does not tell what entered it, or None when it does."""
    if observation.kind == "weights" and observation.protocol.optimiser == "adam":
        return because("local-adam.quotient")
    if observation.protocol.weight_decay and why_not_one_step(observation) is not None:
        return because("weight-decay.several-steps")
    if not bool((observation.update[head.bias or head.weight] != 0).any()):
        return because("gradient-is-zero", name=head.bias or head.weight)
    images = images_behind(head, observation)
    if isinstance(images, Reason):
        return images
    if images == 1:
        return None
    why = why_no_softmax if head.scores else why_not_stacked
    return why(victim, head, observation, images)


def why_not_stacked(victim: Victim, head: TrainedHead, observation: Observation, images: int) -> Reason | None:
    """Why the layers behind a head do not tell its images apart, or None when they do."""
    several = why_not_one_step(observation)
    if several is not None:
        return several
    found = _layers(victim, head, observation, images)
    return because("head-not-classifier", name=head.name, why=found) if isinstance(found, Reason) else None


def stacked_features(
    victim: Victim, head: TrainedHead, observation: Observation, images: int, generator: Generator
) -> BatchFeatures:
    """The features of as many images as are found.

    Args:
        victim: Public knowledge about the model.
        head: One that `why_not_stacked` has nothing against.
        observation: The update.
        images: Behind it.
        generator: Source of the starts.
    """
    layers = _layers(victim, head, observation, images)
    assert not isinstance(layers, Reason)
    seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    batch = find_inputs(layers, torch.Generator().manual_seed(seed))
    left = 1.0
    if batch.backward:
        deltas = torch.stack([one.inner for one in batch.backward])
        left = unexplained(observed_gradient(observation)[head.weight].double(), deltas, batch.inputs)
    return BatchFeatures(
        features=batch.inputs,
        labels=None,
        residual=left,
        solved=EXPLAINED,
        errors=batch.inputs.new_tensor([one.misfit for one in batch.backward]),
        starts=batch.starts,
    )


def _layers(victim: Victim, head: TrainedHead, observation: Observation, images: int) -> TwoLayers | Reason:
    pair = stacked_layers(victim, trace(victim), head.module)
    if isinstance(pair, Reason):
        return pair
    if not owns(head.module, "bias") and pair.keeps_factors():
        return because("first-layer-without-bias", name=head.name)
    layers = two_layers(observation, pair, MOST, expected=images)
    if isinstance(layers, Reason):
        return layers
    return why_no_room(layers, pair, images) or layers
