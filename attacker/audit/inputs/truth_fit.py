"""Fit of true images to an update: a truth of another round or client must not be scored.

The update is compared with replays of the client's work: on the images that are said to be behind it, and on others
that stand for any images. If the truth is right its replay is nearer than the others', and what remains between it and
the update, from whatever is not known of the client, points to none of them. If it is wrong it is one of the others,
and from where it stands the rest of them lie in the update's direction. Only both together refuse a truth.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from attacker.attacks.base import check_observation
from attacker.audit.inputs.defence_check import sightings
from attacker.audit.truth.base import Truth
from attacker.gradients.batch_norm import batch_norms
from attacker.gradients.observed import observed_gradient, steps_behind
from attacker.reasons import Reason, because
from attacker.victim import Victim
from fl_precode.defences.registry import gradient_defence
from fl_precode.local_training import local_training, set_training
from fl_precode.models.input_spec import InputSpec
from fl_precode.objective import training_loss
from fl_precode.observation import Observation

_logger = logging.getLogger(__name__)

_Signs = tuple[tuple[float, float], ...]

_SIGNS: Final[_Signs] = ((0.9, 0.3), (0.5, 0.42))
"""What speaks against a truth, either pair: its distance from the update beside that of the nearest other, and the
cosine between the way to the update and the way to the others' mean. Measured: exact replays of true images 1e-10, 0;
of others 0.55 to 17 and 0.32 to 0.9, by one group of others or another. Label smoothing and weight decay that no replay
knows of leave true images one of the two, save single images that the model has already fitted to smoothed labels."""

_SIGNS_OF_A_GUESS: Final[_Signs] = ((0.9, 0.42),)
"""The same where the images' scale is a guess, so that replays of true images are not exact."""

_ASIDE: Final = 0.2
"""The same cosine at right angles to the replay, asked for where nobody said that no noise was added."""

_ROUNDING: Final = 1e-9
"""Distance (1 - cosine) at which a replay is the update."""

_RANDOM: Final = 1e-8
"""Distance between two replays of the same images from which the model is random."""

_ALIKE: Final = 0.87
"""Mean size of an update's numbers beside their root mean square from which it looks like Adam's or like signs: equal
numbers have 1, normally distributed ones 0.8."""

_MOST_WORK: Final = 2e11
"""Floating-point operations of all replays of one update: some seconds."""

_MOST_OTHERS: Final = 4

_TINY: Final = 1e-300


def why_not_behind(
    victim: Victim,
    observation: Observation,
    steps: Sequence[Truth],
    others: Sequence[Truth],
    defence: str,
    scales: Sequence[InputSpec],
) -> Reason | None:
    """Why these images cannot be what the client trained on; None when they can, and when it cannot be told.

    It cannot be told of models that draw at random, of updates that a defence has changed, of Adam's, and of models
    too large to be replayed in some seconds.

    Args:
        victim: Public knowledge about the model.
        observation: The update.
        steps: The true batches in order, or all images as one batch.
        others: What is behind other updates.
        defence: As it was announced.
        scales: How the clients may have normalised their images; one in which the truth fits is enough.
    """
    if _cannot_be_replayed(victim, observation, defence):
        return None
    try:
        images, labels, order = _distinct(steps)
        ways = [
            _Replay(replace(victim, inputs=scale), observation, order, mode)
            for scale in scales
            for mode in _modes(victim, observation)
        ]
        replay = _nearest(ways, images, labels)
        others_of_all = _others(images, labels, others, victim.inputs.classes)
        signs = _SIGNS if len(scales) == 1 else _SIGNS_OF_A_GUESS
        # With the number of steps known noise shows in the update's rank, and `sightings` would have had a word.
        noise_excluded = defence != "unknown" or steps_behind(observation) is not None
        return None if replay is None else _told(replay, images, labels, others_of_all, signs, noise_excluded)
    except Exception:  # foreign models may raise anything
        _logger.info("whether the truth fits %s, round %d, cannot be told", observation.node, observation.round,
                     exc_info=True)  # fmt: skip
        return None


def _cannot_be_replayed(victim: Victim, observation: Observation, defence: str) -> bool:
    if check_observation(victim, observation) is not None:
        return True
    if observation.kind == "weights" and observation.protocol.optimiser == "adam":
        return True
    if defence != "unknown" and gradient_defence(defence) is not None:
        return True
    return _alike(observation) or bool(sightings(victim, observation, "none"))


def _alike(observation: Observation) -> bool:
    values = max(observation.update.values(), key=Tensor.numel).double().flatten()
    values = values[values != 0].abs()
    return len(values) > 1 and float(values.mean()) > _ALIKE * float(values.square().mean().sqrt())


def _modes(victim: Victim, observation: Observation) -> tuple[str, ...]:
    """How batch normalisation may have gone, for all that is known."""
    announced = observation.protocol.batch_norm
    return ("batch", "buffers") if announced is None and batch_norms(victim.model) else (announced or "batch",)


def _nearest(ways: Sequence[_Replay], images: Tensor, labels: Tensor) -> _Replay | None:
    """The way in which the replay comes nearest to the update; None where none is affordable or the model is random."""
    measured: list[tuple[float, _Replay]] = []
    for replay in ways:
        try:
            with FlopCounterMode(display=False) as counter:
                replayed = replay(images, labels)
        except ValueError:  # one image cannot be normalised by its batch
            continue
        if counter.get_total_flops() * (3 * _MOST_OTHERS + len(ways) + 2) > _MOST_WORK:
            return None
        if not measured and 1 - float(replayed @ replay(images, labels)) > _RANDOM:
            return None
        measured.append((1 - float(replayed @ replay.target), replay))
    return min(measured, key=lambda pair: pair[0])[1] if measured else None


def _told(
    replay: _Replay,
    images: Tensor,
    labels: Tensor,
    others: Sequence[tuple[str, _Group]],
    signs: _Signs,
    noise_excluded: bool,
) -> Reason | None:
    """What speaks against the truth; None where nothing does."""
    replayed = replay(images, labels)
    distance = 1 - float(replayed @ replay.target)
    if distance < _ROUNDING:
        return None
    for what, group in others:
        alternatives = torch.stack([replay(*batch) for batch in group[:_MOST_OTHERS]])
        share = distance / max(1 - float((alternatives @ replay.target).max()), _TINY)
        mean = alternatives.mean(dim=0)
        if not any(
            share > most and _cosine(replay.target - replayed, mean - replayed) > cosine for most, cosine in signs
        ):
            continue
        # Noise makes an update short in the direction of every replay, which alone looks like a way to the others.
        aside = _cosine(replay.target - (replay.target @ replayed) * replayed, mean - (mean @ replayed) * replayed)
        if noise_excluded or aside > _ASIDE:
            return because("truth-does-not-fit", what=what)
    return None


def _cosine(vector: Tensor, other: Tensor) -> float:
    return float(vector @ other / (vector.norm() * other.norm()).clamp_min(_TINY))


def _distinct(steps: Sequence[Truth]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Images and labels, each once, and which of them every step uses."""
    places: dict[bytes, int] = {}
    order = [
        torch.tensor([places.setdefault(image.numpy().tobytes(), len(places)) for image in step.images])
        for step in steps
    ]
    used = torch.cat(order)
    first = torch.tensor([int((used == place).nonzero()[0]) for place in range(len(places))])
    return torch.cat([step.images for step in steps])[first], torch.cat([step.labels for step in steps])[first], order


class _Replay:
    """The client's work on some images, as a vector of length 1 that points the way of a gradient.

    Attributes:
        target: The update likewise.
    """

    def __init__(self, victim: Victim, observation: Observation, order: Sequence[Tensor], mode: str) -> None:
        protocol = observation.protocol
        self._inputs, self._order, self._mode, self._protocol = victim.inputs, order, mode, protocol
        self._names, self._loss = sorted(observation.update), victim.criterion
        self._start = deepcopy(victim.model)
        self._start.load_state_dict({**observation.parameters, **observation.buffers}, strict=False)
        for name, parameter in self._start.named_parameters():
            parameter.requires_grad_(name in observation.update)
        announced = observation.kind == "weights" and bool(protocol.learning_rate)
        # With every step's images the training can be repeated, else one gradient of all images stands for it.
        self._trained = announced and steps_behind(observation) == len(order)
        away = {name: -value for name, value in observation.update.items()}
        self.target = self._unit(away if self._trained else observed_gradient(observation))

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        model, normalised = deepcopy(self._start), self._inputs.normalise(images)
        if not self._trained:
            return self._unit(self._gradient(model, normalised, labels))
        local_training(
            model,
            [(normalised[places], labels[places]) for places in self._order],
            learning_rate=self._protocol.learning_rate or 0.0,
            momentum=self._protocol.momentum or 0.0,
            weight_decay=self._protocol.weight_decay or 0.0,
            batch_norm=self._mode,
            loss=self._loss,
        )
        before, after = (dict(module.named_parameters()) for module in (self._start, model))
        return self._unit({name: before[name] - after[name] for name in self._names})

    def _gradient(self, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        set_training(model, self._mode)
        named = {name: value for name, value in model.named_parameters() if value.requires_grad}
        loss = training_loss(model, images, labels, self._loss)
        gradients = torch.autograd.grad(loss, list(named.values()), materialize_grads=True)
        return dict(zip(named, gradients, strict=True))

    def _unit(self, values: Mapping[str, Tensor]) -> Tensor:
        vector = torch.cat([values[name].detach().flatten().double() for name in self._names])
        direction: Tensor = vector / vector.norm().clamp_min(_TINY)
        return direction


_Group = list[tuple[Tensor, Tensor]]


def _others(images: Tensor, labels: Tensor, others: Sequence[Truth], classes: int) -> list[tuple[str, _Group]]:
    """What a wrong truth would be one of: what is behind other updates, other images, other labels."""
    count, prints = len(labels), {image.numpy().tobytes() for image in images}
    strangers = [
        (other.images[:count], other.labels[:count])
        for other in others
        if other.images.shape[1:] == images.shape[1:]
        and len(other.images) >= count
        and not any(image.numpy().tobytes() in prints for image in other.images)
    ]
    height, width = images.shape[-2:]
    moved = [images.flip(2), images.roll(height // 2, 2), images.roll(width // 2, 3)]
    in_their_place = [stranger for stranger, _ in strangers[:2]]
    shifts = [shift for shift in (1, 2, 3, 5) if shift < classes]
    groups: list[tuple[str, _Group]] = [
        ("what is behind other updates", strangers if len(strangers) > 1 else []),
        ("other images of the same classes", [(replacement, labels) for replacement in [*in_their_place, *moved]]),
        ("the same images with other labels", [(images, (labels + shift) % classes) for shift in shifts]),
    ]
    return [(what, group) for what, group in groups if group]
