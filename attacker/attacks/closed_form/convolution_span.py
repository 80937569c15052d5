"""Convolution span: the maps in the row space of a deep convolution's gradient, and the images behind them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor, nn

from attacker.analytic.convolutions.images_of_maps import ImageMaps, sized, unmixed
from attacker.analytic.convolutions.known_maps import FedConvolution, MapsOfModel, follows, map_gradient, maps_of
from attacker.analytic.convolutions.patch_span import spanned_maps, why_no_span
from attacker.analytic.convolutions.walk_back import earlier_maps
from attacker.attacks.base import Attack, Outcome, Progress, Reconstruction
from attacker.attacks.best_match import EXACT_BELOW, replayed_distance
from attacker.attacks.known_labels import known_labels
from attacker.attacks.label_trial import without_labels
from attacker.attacks.randomness import derived
from attacker.attacks.registration import register_attack
from attacker.gradients.client_mode import uses_batch_statistics
from attacker.gradients.observed import observed_gradient, why_not_one_step, why_scale_unknown
from attacker.gradients.replay import Replay
from attacker.gradients.trace import trace
from attacker.objectives.feature_objective import FeatureObjective
from attacker.objectives.feature_prior import FeatureTarget
from attacker.objectives.first_layers import FirstLayers
from attacker.optim.deadline import time_is_up
from attacker.optim.double_precision import precise
from attacker.optim.first_order import Descent
from attacker.optim.lbfgs import LBFGS
from attacker.optim.random_streams import Draws
from attacker.optim.result import Matched
from attacker.optim.setting_ranges import check_positive, check_weight, check_whole
from attacker.reasons import Reason, because, joined
from attacker.victim import Victim, dropout_in
from fl_precode.observation import Observation

_NEARLY_GREY = 0.1
_ROUND = 50
"""Evaluations after which the search by the map alone goes on only if it came `_FAST` times closer."""
_FAST = 4.0
_ROUNDS = 8
_FOUND_BELOW = 1e-9
"""Squared distance of the features, as a share of what grey images miss, at which the search ends."""


@register_attack(
    "convolution-span",
    title="convolution span",
    description="images of a small batch from what entered a deep, wide convolution, and the layers before it",
    source="this project; Mahendran, Vedaldi, CVPR 2015",
    rank=50,
    cost=150.0,  # 60 to 110 on ResNets, 250 on the ConvNet of research code
    colour="#0f766e",
)
@dataclass(frozen=True, kw_only=True)
class ConvolutionSpan(Attack):
    """What entered a wide convolution, exactly, and images that the layers before turn to it.

    The gradient of a convolution's weight is a sum over positions of outer products: of the gradient at the outputs and
    the patch there. Deep in a network there are fewer positions than channels. Then the row space of the gradient is
    that of the patches, and because patches overlap, one map alone has all its patches in it: what entered, up to its
    size (`attacker.analytic.convolutions.patch_span`). Maps of a batch are told apart by the zeros that ReLUs leave.
    Their size and label follow from the layers behind. From there the maps before follow, each by one linear system, as
    long as the layers have enough channels (`walk_back`): residual blocks are no obstacle. Last, images are sought that
    the first layers turn to the first known map.

    Fits one step, models whose convolutions are fed by ReLUs or max pooling and normalise by running statistics or not
    at all, and batches for which a convolution has as many outputs as positions, all images together. A search
    that stalls, as behind a pooling that drops values, goes on with the gradients of the layers before as well, which
    the known map and its gradient explain without the rest of the model (`FirstLayers`). Then the image is no longer
    exact: the outcome is the limit of iterations, and the reason says how far off it is.

    Attributes:
        iterations: Steps of the search on map and gradients together, 1 or more.
        learning_rate: Its first learning rate, in the model's normalised scale, positive.
        total_variation: Weight of this prior in it, 0 or more.

    Raises:
        ValueError: If a setting is out of its range.
    """

    iterations: int = 200
    learning_rate: float = 0.1
    total_variation: float = 1e-2

    def __post_init__(self) -> None:
        check_whole("iterations", self.iterations, least=1)
        check_positive("learning_rate", self.learning_rate)
        check_weight("total_variation", self.total_variation)

    @property
    def name(self) -> str:
        """Name in the registry."""
        return "convolution-span"

    def refuses(self, victim: Victim, observation: Observation) -> Reason | None:
        """Reason why the attack cannot fit the observation, or None when it can."""
        for why in (victim.why_no_loss, why_not_one_step(observation), why_scale_unknown(observation)):
            if why is not None:
                return why
        if observation.batch_size is None:
            return because("batch-size-unknown")
        if uses_batch_statistics(victim, observation):
            return because("normalised-by-batch")
        if trace(victim).random or dropout_in(victim.model):
            return because("layers-draw")
        if not any(isinstance(module, nn.Conv2d) for module in victim.model.modules()):
            return because("no-convolutions")
        found = list(_entered(victim, observation))
        reasons = [one for one in found if isinstance(one, Reason)]
        return reasons[-1] if found and len(reasons) == len(found) else None

    def run(
        self,
        victim: Victim,
        observations: Sequence[Observation],
        labels: Sequence[Tensor | None],
        generators: Sequence[Generator],
        progress: Progress | None,
    ) -> list[Reconstruction]:
        """The maps of each observation's images, and a search for these images."""
        results = []
        for index, (observation, granted, generator) in enumerate(zip(observations, labels, generators, strict=True)):
            began = time.perf_counter()
            result = self._attack(victim, observation, granted, generator)
            results.append(replace(result, seconds=time.perf_counter() - began))
            if progress is not None:
                progress((index + 1) / len(observations), None)
        return results

    def _attack(
        self, victim: Victim, observation: Observation, granted: Tensor | None, generator: Generator
    ) -> Reconstruction:
        ((labels, words),) = known_labels(victim, [observation], [granted], [generator])
        if labels is None:
            return without_labels(words)
        found = _first_known(victim, observation, labels, generator)
        if isinstance(found, Reason):
            return Reconstruction(inputs=None, labels=labels, outcome=Outcome.ITERATION_LIMIT, reason=found)
        matched = self._searched(victim, observation, found, generator)
        inputs, left = matched.candidates[0, 0], float(matched.distances[0, 0])
        if not bool(inputs.isfinite().all()):
            reason = because("image-not-finite")
            return Reconstruction(inputs=None, labels=labels, outcome=Outcome.DIVERGED, reason=reason)
        inputs = victim.inputs.clamp(inputs)
        distance = replayed_distance(victim, trace(victim), observation, inputs, found.labels)
        exact = distance is not None and distance < EXACT_BELOW
        said = because("map-inverted", name=found.layer, residual=found.residual, distance=left)
        steps = int(matched.iterations[0, 0])
        cut = because("time-ended", steps=steps, total=self.iterations) if matched.cut else ""
        return Reconstruction(
            inputs=inputs,
            labels=found.labels,
            outcome=Outcome.CONVERGED if exact else Outcome.ITERATION_LIMIT,
            reason=joined([said, cut]),
            matching_loss=distance,
            iterations=steps,
            starts=1,
            cut=matched.cut,
        )

    def _searched(self, victim: Victim, observation: Observation, found: _Known, generator: Generator) -> Matched:
        """Images that give the first known map; where their search stalls, by the gradients before it as well."""
        like = next(iter(observation.parameters.values()))
        replay = Replay(victim, observation.parameters, observation.buffers)
        start = _NEARLY_GREY * Draws.of_each([generator], 1).normal(len(found.labels), *victim.inputs.shape, like=like)
        with torch.enable_grad():
            matched = _inverted(victim, replay, found.layer, found.values.to(like), start)
            if float(matched.distances) < _FOUND_BELOW or matched.cut:
                return matched
            layer, value, steep = found.cutting
            gradient = observed_gradient(observation)
            objective = FirstLayers(replay, layer, value.to(like), steep.to(like), gradient, self.total_variation)
            search = Descent(
                iterations=self.iterations, learning_rate=self.learning_rate, signed=False, schedule="cosine"
            )
            started = victim.inputs.clamp(matched.candidates)
            near = search.run(objective, started, project=victim.inputs.clamp)
            last = _inverted(victim, replay, found.layer, found.values.to(like), near.candidates)
            return last if float(last.distances) < _FOUND_BELOW else near


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What is known of the maps of a client's images.

    Attributes:
        layer: Name of a convolution that the first known map enters.
        values: (batch, channels, height, width), that map.
        labels: (batch,), in the order of the images.
        residual: Relative, of the map that was found first.
        cutting: The first known map from which all follows: a convolution that it enters, values, and the gradient of
            the loss with respect to them.
    """

    layer: str
    values: Tensor
    labels: Tensor
    residual: float
    cutting: tuple[str, Tensor, Tensor]


def _inverted(victim: Victim, replay: Replay, layer: str, values: Tensor, start: Tensor) -> Matched:
    """Images that the first layers turn to a map, by L-BFGS, as long as it comes closer fast."""
    target = FeatureTarget([replay], {layer: values.flatten(1)[None]})
    objective = FeatureObjective.beside_grey(target, start, 0.0)
    search, before = LBFGS(iterations=_ROUND, learning_rate=1.0, history=_ROUND), float("inf")
    for _ in range(_ROUNDS):
        matched = search.run(objective, start, stop_below=_FOUND_BELOW)
        now, start = float(matched.distances), matched.candidates
        if now < _FOUND_BELOW or not now < before / _FAST or matched.cut:
            break
        before = now
    return matched


def _entered(victim: Victim, observation: Observation) -> Iterator[FedConvolution | Reason]:
    """Convolutions whose row space may tell what entered them, in order of execution, or why the others' cannot."""
    maps = maps_of(victim)
    if not maps.convolutions:
        yield because("convolutions-not-fed")
    for layer in maps.convolutions:
        if layer.weight not in observation.update:
            continue
        why = why_no_span(layer.patches, observation.batch_size or 1)
        yield layer if why is None else why


def _first_known(victim: Victim, observation: Observation, labels: Tensor, generator: Generator) -> _Known | Reason:
    """What is known of the maps of a client's images, or why nothing is."""
    maps, gradient = maps_of(victim), observed_gradient(observation)
    replay = Replay(
        victim,
        {name: _doubled(value) for name, value in observation.parameters.items()},
        {name: _doubled(value) for name, value in observation.buffers.items()},
    )
    (source,) = derived(generator, 1)
    reasons: list[Reason] = []
    for layer in reversed(list(_entered(victim, observation))):
        if isinstance(layer, Reason) or not follows(victim, layer.map):
            continue
        if time_is_up(1):
            break
        entered = _entered_by(replay, maps, layer, observation, labels, source)
        if isinstance(entered, Reason):
            reasons.append(entered)
            continue
        known = earlier_maps(replay, gradient, maps, layer.map, entered.values, entered.labels)
        first = min(known)
        cut = min(number for number in known if follows(victim, number))
        steep = map_gradient(replay, known, entered.labels, cut)
        return _Known(
            layer=maps.fed_by(first)[0].name,
            values=known[first],
            labels=entered.labels,
            residual=entered.residual,
            cutting=(maps.fed_by(cut)[0].name, known[cut], steep),
        )
    return joined(reasons) if reasons else because("maps-bypassed")


def _entered_by(
    replay: Replay,
    maps: MapsOfModel,
    layer: FedConvolution,
    observation: Observation,
    labels: Tensor,
    generator: Generator,
) -> ImageMaps | Reason:
    """What entered a convolution for each image."""
    gradient = observed_gradient(observation)
    spanned = spanned_maps(gradient[layer.weight], layer.patches, len(labels), name=layer.weight, generator=generator)
    if isinstance(spanned, Reason):
        return spanned
    units = unmixed(spanned, torch.Generator().manual_seed(generator.initial_seed()))
    return units if isinstance(units, Reason) else sized(replay, gradient, maps, layer, units, labels)


def _doubled(value: Tensor) -> Tensor:
    return precise(value) if value.is_floating_point() else value
