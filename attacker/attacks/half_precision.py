"""Models and updates in half precision, attacked in single precision."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor

from attacker.model_copy import copied
from attacker.victim import Victim
from fl_precode.observation import Observation

logger = logging.getLogger(__name__)

_HALF = (torch.float16, torch.bfloat16)


def in_single_precision(victim: Victim, observations: Sequence[Observation]) -> tuple[Victim, Sequence[Observation]]:
    """The same problem with every half-precision tensor as float32; unchanged, and uncopied, without any.

    Second derivatives of matched gradients are too small for half precision, and some layers have none there on a CPU.
    What the client's own half precision rounded away stays lost; reconstructions are float32.
    """
    model = victim.model
    if _has_half([*model.parameters(), *model.buffers()]):
        model = copied(model)
        for tensor in chain(model.parameters(), model.buffers()):
            tensor.data = _single(tensor.data)
        victim = replace(victim, model=model)
        logger.info("the model of %r has half precision; it is attacked in float32", victim.name)
    return victim, [_observation(observation) for observation in observations]


def _observation(observation: Observation) -> Observation:
    every = (observation.parameters, observation.buffers, observation.update, observation.returned)
    if not _has_half([tensor for tensors in every for tensor in tensors.values()]):
        return observation
    logger.info(
        "the update of node %s in round %d has half precision; it is attacked in float32",
        observation.node,
        observation.round,
    )
    return replace(
        observation,
        parameters=_all(observation.parameters),
        buffers=_all(observation.buffers),
        update=_all(observation.update),
        returned=_all(observation.returned),
    )


def _has_half(tensors: Sequence[Tensor]) -> bool:
    return any(tensor.dtype in _HALF for tensor in tensors)


def _single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in _HALF else tensor


def _all(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: _single(tensor) for name, tensor in tensors.items()}
