"""Feature inversion: what entered a head, from the head's gradient, and the images that the known trunk turns to it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from attacker.analytic.heads.batch_features import (
    DETERMINED,
    BatchFeatures,
    HeadTraining,
    features_of_batch,
    features_of_one,
)
from attacker.analytic.heads.stacked_head import stacked_features, why_not_read
from attacker.analytic.heads.trained_head import TrainedHead, images_behind, trained_head, why_no_softmax
from attacker.analytic.heads.update_rounding import rounding_of
from attacker.attacks.base import Attack, Outcome, Progress, Reconstruction
from attacker.attacks.best_match import EXACT_BELOW, replayed_distance
from attacker.attacks.half_precision import in_single_precision
from attacker.attacks.known_labels import known_labels
from attacker.attacks.label_trial import without_labels
from attacker.attacks.registration import register_attack
from attacker.gradients.client_mode import as_trained
from attacker.gradients.observed import observed_gradient, steps_behind
from attacker.gradients.replay import Replay
from attacker.gradients.trace import trace
from attacker.gradients.uncompared_parameters import settled
from attacker.objectives.feature_objective import FeatureObjective
from attacker.objectives.feature_prior import FeatureTarget
from attacker.optim.double_precision import precise
from attacker.optim.first_order import Descent
from attacker.optim.random_streams import Draws
from attacker.optim.result import Matched
from attacker.optim.setting_ranges import check_flag, check_positive, check_weight, check_whole
from attacker.reasons import Reason, because, joined
from attacker.victim import Victim
from fl_precode.observation import Observation

_NEARLY_GREY = 0.1
"""Standard deviation of the first images: units of a ReLU without bias pass nothing at grey itself."""


@register_attack(
    "feature-inversion",
    title="feature inversion",
    description="a head behind a frozen trunk: each image's features from its gradient, then the trunk inverted",
    source="this project; Mahendran, Vedaldi, CVPR 2015",
    rank=80,
    cost=600.0,
    colour="#7c3aed",
)
@dataclass(frozen=True, kw_only=True)
class FeatureInversion(Attack):
    """Features from the gradient of a head, and images from the features (Mahendran, Vedaldi, CVPR 2015).

    A client that trains a Linear head behind a trunk that stays as it was sends no gradient of the trunk. What it sends
    shows what the trunk made of each image: of one image by a division, of a batch smaller than the number of classes
    by the softmax of the head (`attacker.analytic.heads`). Adapters are such heads, and so is the branch that LoRA adds
    to a frozen Linear layer: its gradient has the direction of one image's features. The trunk is known, so that images
    are sought whose features are these: no gradient is matched, and none is differentiated twice. How much is
    reconstructed is how much the trunk keeps. Few numbers for an image, as pooled features are, do not determine it;
    they name it all the same among images that one has (docs/explanation/heads.md).

    Clients that normalise by the batch are replayed so: all images of the batch are sought together.

    Attributes:
        steps: Steps of the search for images, 1 or more.
        learning_rate: Learning rate of its first step, in the model's normalised scale, positive.
        total_variation: Weight of the prior beside the features' squared distance, as a share of what grey images miss,
            0 or more.
        starts: Starts of the search for the features of a batch, at most, 1 or more.
        any_trunk: Whether trunks that were trained too are inverted, as they were sent.
        noise: Standard deviation of errors in the head's gradient beside those of rounding, relative to its size, 0 or
            more.

    Raises:
        ValueError: If a setting is out of its range.
    """

    steps: int = 1_000
    learning_rate: float = 0.3
    total_variation: float = 1e-3
    starts: int = 12
    any_trunk: bool = False
    noise: float = 0.0

    def __post_init__(self) -> None:
        check_whole("steps", self.steps, least=1)
        check_whole("starts", self.starts, least=1)
        check_positive("learning_rate", self.learning_rate)
        check_weight("total_variation", self.total_variation)
        check_flag("any_trunk", self.any_trunk)
        check_weight("noise", self.noise)

    @property
    def name(self) -> str:
        """Name in the registry."""
        return "feature-inversion"

    def refuses(self, victim: Victim, observation: Observation) -> Reason | None:
        """Reason why the attack cannot fit the observation, or None when it can."""
        (clients,) = as_trained(victim, [observation])
        head = trained_head(clients.victim, trace(clients.victim), any_trunk=self.any_trunk)
        return head if isinstance(head, Reason) else why_not_read(clients.victim, head, observation)

    def features(self, victim: Victim, observation: Observation, generator: Generator) -> ReadFeatures | Reason:
        """Input of the head for each image, without a search for the images; or the reason why it is not known.

        Args:
            victim: Public knowledge about the model.
            observation: Any update of it, as it was recorded.
            generator: For the recovery of labels, and the search for features.
        """
        victim, (single,) = in_single_precision(victim, [observation])
        why = self.why_not(victim, single)
        if why is not None:
            return why
        fixed, moving = settled(victim, single)
        (clients,) = as_trained(fixed, [moving])
        head = trained_head(clients.victim, trace(clients.victim), any_trunk=self.any_trunk)
        assert not isinstance(head, Reason)
        (seen,) = clients.observations
        found = head_features(clients.victim, head, seen, None, generator, starts=self.starts, noise=self.noise)
        if isinstance(found, Reason):
            return found
        images = images_behind(head, seen)
        assert not isinstance(images, Reason)
        return ReadFeatures(victim=clients.victim, observation=seen, layer=head.name, images=images, found=found)

    def run(
        self,
        victim: Victim,
        observations: Sequence[Observation],
        labels: Sequence[Tensor | None],
        generators: Sequence[Generator],
        progress: Progress | None,
    ) -> list[Reconstruction]:
        """The features of each observation's images, and a search for these images."""
        results: dict[int, Reconstruction] = {}
        for clients in as_trained(victim, observations) if observations else ():
            for index, observation in zip(clients.indices, clients.observations, strict=True):
                results[index] = self._attack(clients.victim, observation, labels[index], generators[index])
                if progress is not None:
                    progress(len(results) / len(observations), None)
        return [results[index] for index in range(len(observations))]

    def _attack(
        self, victim: Victim, observation: Observation, granted: Tensor | None, generator: Generator
    ) -> Reconstruction:
        began = time.perf_counter()
        head = trained_head(victim, trace(victim), any_trunk=self.any_trunk)
        assert not isinstance(head, Reason)
        found = head_features(victim, head, observation, granted, generator, starts=self.starts, noise=self.noise)
        if isinstance(found, Reason):
            result = without_labels(found)
        elif not len(found.features):
            words = _words(head, found, 1.0)
            result = Reconstruction(inputs=None, labels=None, outcome=Outcome.ITERATION_LIMIT, reason=words)
        else:
            result = self._reconstructed(victim, head, observation, found, generator)
        return replace(result, seconds=time.perf_counter() - began)

    def _reconstructed(
        self,
        victim: Victim,
        head: TrainedHead,
        observation: Observation,
        found: BatchFeatures,
        generator: Generator,
    ) -> Reconstruction:
        matched = self._inverted(victim, head, observation, found, generator)
        inputs, distance = matched.candidates[0, 0], float(matched.distances[0, 0])
        steps = int(matched.iterations[0, 0])
        images = images_behind(head, observation)
        assert not isinstance(images, Reason)
        missing = images - len(inputs)
        known = found.determined == images
        some = because("inputs-not-found", found=len(inputs), rank=images, starts=found.starts) if missing else ""
        cut = because("time-ended", steps=steps, total=self.steps) if matched.cut else ""
        if not distance < float("inf"):
            return Reconstruction(
                inputs=None, labels=found.labels, outcome=Outcome.DIVERGED, reason=because("image-not-finite")
            )
        matching = None
        if found.labels is not None:
            matching = replayed_distance(victim, trace(victim), observation, inputs, found.labels)
        gaps = inputs.new_full((missing, *inputs.shape[1:]), float("nan"))
        return Reconstruction(
            inputs=torch.cat([inputs, gaps]),
            labels=found.labels,
            outcome=Outcome.CONVERGED if known and distance < EXACT_BELOW else Outcome.ITERATION_LIMIT,
            reason=joined([_words(head, found, distance), some, cut]),
            matching_loss=matching,
            iterations=steps,
            starts=1,
            cut=matched.cut,
        )

    def _inverted(
        self, victim: Victim, head: TrainedHead, observation: Observation, found: BatchFeatures, generator: Generator
    ) -> Matched:
        like = next(iter(observation.parameters.values()))
        replay = Replay(victim, observation.parameters, observation.buffers)
        draws = Draws.of_each([generator], 1)
        wanted = {head.name: found.features.to(like)[None]}
        target = FeatureTarget([replay], wanted, direction_only=found.direction_only)
        search = Descent(
            iterations=self.steps, learning_rate=self.learning_rate, signed=False, schedule="cosine", iterate="best"
        )
        start = _NEARLY_GREY * draws.normal(len(found.features), *victim.inputs.shape, like=like)
        objective = FeatureObjective.beside_grey(target, start, self.total_variation)
        with torch.enable_grad():
            return search.run(objective, victim.inputs.clamp(start), project=victim.inputs.clamp)


@dataclass(frozen=True, kw_only=True)
class ReadFeatures:
    """The features of an update's images, and what they are features of.

    Attributes:
        victim: The model as its clients ran it.
        observation: The update, without what the model has no use for.
        layer: Name of the head.
        images: Behind the update.
        found: Their features.
    """

    victim: Victim
    observation: Observation
    layer: str
    images: int
    found: BatchFeatures


def _words(head: TrainedHead, found: BatchFeatures, distance: float) -> Reason:
    """What a reader should know about the features and the images."""
    if not found.residual <= found.solved:
        return because(
            "features-found.not",
            name=head.name,
            starts=found.starts,
            residual=found.residual,
            solved=found.solved,
            distance=distance,
        )
    words = because("features-found", name=head.name, residual=found.residual, distance=distance)
    if found.determined == len(found.features):
        return words
    worst, size = float(found.errors.max()), len(found.features)
    return joined(
        [words, because("features-uncertain", count=found.determined, size=size, known=DETERMINED, worst=worst)]
    )


def head_features(
    victim: Victim,
    head: TrainedHead,
    observation: Observation,
    granted: Tensor | None,
    generator: Generator,
    *,
    starts: int,
    noise: float = 0.0,
) -> BatchFeatures | Reason:
    """What entered a head for each image, or why its labels, which batches need, are not known.

    Args:
        victim: Public knowledge about the model, as its clients ran it.
        head: One that `why_not_read` lets pass.
        observation: The update.
        granted: (batch,) labels, or None.
        generator: For the recovery of labels, and the search for features.
        starts: Starts of this search, at most.
        noise: Noise beside rounding, relative to the gradient's size.
    """
    images = images_behind(head, observation)
    assert not isinstance(images, Reason)
    sized = replace(observation, batch_size=images)
    if images > 1 and not head.scores:
        return stacked_features(victim, head, sized, images, generator)
    gradient = {name: precise(value) for name, value in observed_gradient(observation).items()}
    weight = precise(observation.parameters[head.weight])
    weight_gradient, bias_gradient = gradient[head.weight], None if head.bias is None else gradient[head.bias]
    errors = [
        0.0 if name is None else math.hypot(rounding_of(sized, name, images), noise * float(gradient[name].norm()))
        for name in (head.weight, head.bias)
    ]
    constant = None if head.constant is None else precise(observation.buffers[head.constant])
    ((labels, words),) = known_labels(victim, [sized], [granted], [generator])
    softmax = head.scores and why_no_softmax(victim, head, sized, images) is None
    if images == 1 and (bias_gradient is not None or labels is None or not softmax):
        return replace(features_of_one(weight_gradient, bias_gradient, errors[0]), labels=labels)
    if labels is None:
        return Reason(words)
    protocol, steps = observation.protocol, steps_behind(observation) or 1
    bias = constant if head.bias is None else precise(observation.parameters[head.bias])
    training = HeadTraining(
        weight=weight,
        bias=weight.new_zeros(len(weight)) if bias is None else bias,
        weight_gradient=weight_gradient,
        bias_gradient=bias_gradient,
        steps=steps,
        learning_rate=(protocol.learning_rate or 1.0) if steps > 1 else 1.0,
        momentum=(protocol.momentum or 0.0) if steps > 1 else 0.0,
        rounding=errors[0],
        bias_rounding=errors[1],
    )
    return features_of_batch(training, labels, generator, starts=starts)
