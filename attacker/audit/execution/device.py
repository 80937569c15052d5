"""Attacks on another device than the one that tapes are read to; what they return is moved to that one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from attacker.attacks.base import Reconstruction
from attacker.model_copy import copied
from attacker.victim import Victim
from fl_precode.observation import Observation

CPU = torch.device("cpu")


def placed(
    victim: Victim, observations: Sequence[Observation], device: torch.device
) -> tuple[Victim, list[Observation]]:
    """The same problem with its tensors on ``device``; what is given stays where it is."""
    if device == CPU:
        return victim, list(observations)
    moved = replace(victim, model=copied(victim.model).to(device))
    return moved, [_placed(observation, device) for observation in observations]


def on_processor(reconstruction: Reconstruction) -> Reconstruction:
    """The reconstruction with tensors of its own on the CPU, where it is compared with the truth."""
    inputs, labels = (
        None if value is None else _own(value) for value in (reconstruction.inputs, reconstruction.labels)
    )
    return replace(
        reconstruction, inputs=inputs, labels=labels, noise=tuple(_own(draw) for draw in reconstruction.noise)
    )


def _own(value: Tensor) -> Tensor:
    # An attack may give one tensor for several updates, or a view of another: files take neither.
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def _placed(observation: Observation, device: torch.device) -> Observation:
    def moved(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(device) for name, value in values.items()}

    return replace(
        observation,
        parameters=moved(observation.parameters),
        buffers=moved(observation.buffers),
        update=moved(observation.update),
        returned=moved(observation.returned),
    )
