"""Observed updates as gradients, and which of them can be attacked together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fl_precode.observation import Gradients, Observation


def observed_gradient(observation: Observation) -> Gradients:
    """The gradient that the update shows when it was one step of plain SGD.

    A weights update is sent minus received, ``-learning_rate * gradient`` after one step. Without an announced learning
    rate the scale stays unknown and 1 is used; directions and signs are right all the same.
    """
    if observation.kind == "gradient":
        return observation.update
    scale = -1.0 / (observation.protocol.learning_rate or 1.0)
    return {name: value * scale for name, value in observation.update.items()}


def why_not_one_step(observation: Observation) -> str | None:
    """Why the update cannot be one gradient, or None when it is one or nothing announced speaks against it."""
    protocol = observation.protocol
    if observation.kind == "gradient" or protocol.local_steps == 1:
        return None
    if protocol.local_steps is not None and protocol.local_steps > 1:
        return f"made for the gradient of one step, the update sums {protocol.local_steps} local steps"
    if protocol.local_epochs is not None:
        return (
            f"made for the gradient of one step, the update comes from {protocol.local_epochs} local epoch(s) "
            "of a number of steps that was not announced"
        )
    return None


def group_observations(observations: Sequence[Observation]) -> list[list[int]]:
    """Indices of observations that share round, batch size, weights and buffers, in order of first appearance."""
    groups: list[list[int]] = []
    for index, observation in enumerate(observations):
        for group in groups:
            if _same_problem(observations[group[0]], observation):
                group.append(index)
                break
        else:
            groups.append([index])
    return groups


def _same_problem(one: Observation, other: Observation) -> bool:
    return (
        one.round == other.round
        and one.batch_size == other.batch_size
        and _equal(one.parameters, other.parameters)
        and _equal(one.buffers, other.buffers)
    )


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    if one.keys() != other.keys():
        return False
    return all(_same_tensor(value, other[name]) for name, value in one.items())


def _same_tensor(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.dtype == other.dtype and one.device == other.device and torch.equal(one, other))
