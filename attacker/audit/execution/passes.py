"""Duration of one pass through the model, and number of images that pass through it in the replay of an update."""

from __future__ import annotations

import time
from typing import Final

import torch

from attacker.gradients.observed import steps_behind
from attacker.gradients.replay import Replay
from attacker.victim import Victim
from fl_precode.observation import Observation

_FEWEST_IMAGES: Final = 2
_FEW_IMAGES: Final = 8
"""Images on which a pass is measured; batches of one are refused by some models."""

_LONG: Final = 0.5
"""Seconds of a pass that is not repeated on more images."""


def seconds_of_pass(victim: Victim, observation: Observation) -> float:
    """Seconds that one pass forward and backward takes for one image, measured on a few where there is time."""
    few = 0
    taken = 0.0
    for few in (_FEWEST_IMAGES, _FEW_IMAGES):
        if few > max(_FEWEST_IMAGES, observation.batch_size or 1):
            break
        taken = _pass(victim, observation, few) / few
        if taken * _FEW_IMAGES > _LONG:
            break
    return taken


def _pass(victim: Victim, observation: Observation, images: int) -> float:
    like = next(iter(observation.parameters.values()))
    candidates = torch.zeros(images, *victim.inputs.shape, dtype=like.dtype, device=like.device)
    labels = torch.zeros(images, dtype=torch.long, device=like.device)
    weights = {name: value.detach().clone().requires_grad_(True) for name, value in observation.parameters.items()}
    began = time.perf_counter()
    loss = Replay(victim, weights, observation.buffers).loss(weights, candidates, labels, ())
    gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    sum(float(gradient.sum()) for gradient in gradients[:1] if gradient is not None)  # a GPU is waited for
    return time.perf_counter() - began


def replayed_images(observation: Observation) -> int:
    """Images that go through the model in one replay of an update, each as often as the client used it."""
    images, step = observation.batch_size or 1, observation.protocol.batch_size
    steps = None if observation.kind == "gradient" else steps_behind(observation)
    if steps is not None and step is not None:
        return steps * min(step, images)
    return images * (observation.protocol.local_epochs or 1)
