"""Observed updates as gradients, and which of them can be attacked together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from attacker.reasons import Reason, because
from fl_precode.observation import Gradients, Observation


def observed_gradient(observation: Observation) -> Gradients:
    """The gradient that the update shows when it was one step of SGD, or the mean of several steps' gradients.

    See `in_gradient_units`; without an announced learning rate or number of steps the scale stays unknown and the
    missing one is taken as 1: directions and signs are right all the same.
    """
    if observation.kind == "gradient":
        return observation.update
    return in_gradient_units(observation.update, observation)


def kept_gradient(observation: Observation) -> Gradients:
    """As `observed_gradient`, with zeros wherever the update is zero, which weight decay would hide."""
    gradient = observed_gradient(observation)
    if gradient is observation.update or not observation.protocol.weight_decay:
        return gradient
    return {name: value * (observation.update[name] != 0) for name, value in gradient.items()}


def in_gradient_units(update: Mapping[str, Tensor], observation: Observation) -> dict[str, Tensor]:
    """A change of the observation's weights on the scale of one gradient of the loss.

    One step from w changes it by ``-learning_rate * (gradient + weight_decay * w)``, and momentum m makes T steps with
    the same gradient as long as ``sum over k of (T - k) m^k`` plain ones. What was not announced is taken as absent, a
    learning rate as 1; weight decay can be taken back only when its scale is known.

    Args:
        update: Weights afterwards minus weights before, by name; axes may stand before those of the parameter.
        observation: Says the weights before and the protocol.
    """
    protocol, scale = observation.protocol, _gradient_scale(observation)
    decay = protocol.weight_decay or 0.0
    scaled = {name: value * scale for name, value in update.items()}
    if not decay or protocol.learning_rate is None or steps_behind(observation) is None:
        return scaled
    return {name: value - decay * observation.parameters[name] for name, value in scaled.items()}


def gradient_scale(observation: Observation) -> float:
    """What a change of the update by 1 changes the observed gradient by."""
    return 1.0 if observation.kind == "gradient" else _gradient_scale(observation)


def _gradient_scale(observation: Observation) -> float:
    protocol, steps = observation.protocol, steps_behind(observation)
    return -1.0 / ((protocol.learning_rate or 1.0) * _plain_steps(steps or 1, protocol.momentum or 0.0))


def steps_behind(observation: Observation) -> int | None:
    """Optimiser steps that the update sums, or None when what was announced does not say."""
    if observation.kind == "gradient":
        return 1
    if observation.batch_size is None:
        return observation.protocol.local_steps
    return observation.protocol.steps_on(observation.batch_size)


def _plain_steps(steps: int, momentum: float) -> float:
    return float(sum((steps - k) * momentum**k for k in range(steps)))


def why_scale_unknown(observation: Observation) -> Reason | None:
    """Why the size of the gradient behind an update is not known, or None when it is."""
    if observation.kind == "gradient":
        return None
    if observation.protocol.learning_rate is None:
        return because("learning-rate-unknown")
    if observation.protocol.local_epochs is not None and steps_behind(observation) is None:
        return because("steps-unknown")
    return None


def why_not_one_step(observation: Observation) -> Reason | None:
    """Why the update cannot be one gradient, or None when it is one or nothing announced speaks against it."""
    protocol = observation.protocol
    if observation.kind == "gradient":
        return None
    if protocol.optimiser == "adam":
        return because("local-adam")
    steps = steps_behind(observation)
    if steps is not None and steps > 1:
        return because("several-steps", steps=steps)
    if steps is None and protocol.local_epochs is not None:
        return because("several-steps.unknown", epochs=protocol.local_epochs)
    if protocol.weight_decay and protocol.learning_rate is None:
        return because("weight-decay")
    return None


def midway(observation: Observation) -> Observation | None:
    """Several steps of SGD on one batch as one gradient at the weights half way; None where the update is none such.

    The gradient changes along the way, to first order linearly: the mean of K steps' is that at ``(K - 1) / (2 K)`` of
    the way. What several batches gave is no gradient of one.
    """
    protocol, size, steps = observation.protocol, observation.batch_size, steps_behind(observation)
    if observation.kind == "gradient" or protocol.optimiser == "adam" or protocol.weight_decay:
        return None
    if size is None or steps is None or steps < 2 or (protocol.batch_size or size) < size:
        return None
    share = (steps - 1) / (2 * steps)
    there = {
        name: value + share * observation.update[name] if name in observation.update else value
        for name, value in observation.parameters.items()
    }
    return replace(observation, parameters=there)


def group_observations(
    observations: Sequence[Observation], *, may_differ: Collection[str] | None = None
) -> list[list[int]]:
    """Indices of observations that are one problem, as they appear.

    Args:
        observations: Updates.
        may_differ: None: only updates of the same round, weights and buffers are together. Names of buffers: those may
            differ, and weights and rounds too, as for products that give each victim its own.

    Returns:
        Groups of the same kind, protocol and batch size.
    """
    groups: list[list[int]] = []
    for index, observation in enumerate(observations):
        for group in groups:
            if _same_problem(observations[group[0]], observation, may_differ):
                group.append(index)
                break
        else:
            groups.append([index])
    return groups


def same_weights(observation: Observation, other: Observation) -> bool:
    """Whether two observations were taken at the same weights and buffers."""
    return _equal(observation.parameters, other.parameters) and _equal(observation.buffers, other.buffers)


def _same_problem(observation: Observation, other: Observation, may_differ: Collection[str] | None) -> bool:
    if (
        observation.kind != other.kind
        or observation.protocol != other.protocol
        or observation.batch_size != other.batch_size
    ):
        return False
    if may_differ is None:
        return observation.round == other.round and same_weights(observation, other)
    if observation.buffers.keys() != other.buffers.keys() or _form(observation.parameters) != _form(other.parameters):
        return False
    return all(
        _same_tensor(observation.buffers[name], other.buffers[name])
        for name in observation.buffers.keys() - set(may_differ)
    )


def _form(values: Mapping[str, Tensor]) -> list[tuple[str, torch.Size, torch.dtype, torch.device]]:
    return [(name, value.shape, value.dtype, value.device) for name, value in sorted(values.items())]


def _equal(tensors: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    if tensors.keys() != other.keys():
        return False
    return all(_same_tensor(value, other[name]) for name, value in tensors.items())


def _same_tensor(tensor: Tensor, other: Tensor) -> bool:
    return tensor is other or (
        tensor.dtype == other.dtype and tensor.device == other.device and torch.equal(tensor, other)
    )
