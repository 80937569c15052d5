"""Effect of defences on one released gradient, as the change that the influence function takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from attacker.leakage.released import Released
from attacker.model_copy import copied
from fl_precode.defences.on_gradients import GradientDefence


def defence_change(of: Released, pixels: Tensor, defence: GradientDefence, *, generator: Generator) -> Tensor:
    """What a defence adds to the gradient of these images: defended minus released, one vector (columns,).

    Args:
        of: The gradient as a function of the image.
        pixels: (batch, channels, height, width) in [0, 1].
        defence: Such as `fl_precode.defences.gradient_defence` makes from a spec.
        generator: Random generator of the defence.
    """
    before = of.gradient(pixels)
    batch = (of.replay.victim.inputs.normalise(pixels), of.labels)
    after = defence(before, generator=generator, model=_model(of), batch=batch)
    return of.flat(after) - of.flat(before)


def sampling_change(of: Released, pixels: Tensor, noise: Sequence[Tensor]) -> Tensor:
    """How the gradient that a client sends with other noise in its bottlenecks differs, one vector (columns,).

    The attacker fits images with the noise that ``of`` has (zeros, or a draw), while the client drew ``noise``.
    """
    return of.flat(of.gradient(pixels, noise)) - of.flat(of.gradient(pixels))


def without_noise(of: Released) -> Released:
    """The same gradient with zeros for the bottlenecks' noise: what an attacker who ignores it replays."""
    zeros = tuple(torch.zeros_like(value) for value in of.noise)
    return Released(replay=of.replay, labels=of.labels, noise=zeros, matched=of.matched)


def _model(of: Released) -> nn.Module:
    """The client's model at the released weights; a copy."""
    model = copied(of.replay.victim.model)
    model.load_state_dict({**of.replay.buffers, **of.replay.parameters}, strict=False)
    return model
