"""What is attacked in a measurement: a model without training, and the gradients of some images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacker.metrics.similarity import psnr
from attacker.victim import Victim
from fl_precode.models import build_model
from fl_precode.models.input_spec import InputSpec
from fl_precode.observation import Observation, Protocol


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One model, and what each of some clients with one image sends.

    Attributes:
        victim: The model.
        images: (n, channels, height, width) in [0, 1], what is to be found; only the quality is measured by them.
        labels: (n,), known to the attacker.
        observations: One gradient for each image, all at the same weights.
    """

    victim: Victim
    images: Tensor
    labels: Tensor
    observations: list[Observation]

    @property
    def device(self) -> torch.device:
        """Where everything is."""
        return self.images.device

    def quality(self, found: Tensor) -> float:
        """Mean PSNR in dB of reconstructions of the first images, (m, channels, height, width), normalised."""
        images = self.victim.inputs.denormalise(found).clamp(0, 1)
        return float(psnr(images, self.images[: len(found)]).mean())


def make_problem(
    model: str, images: Tensor, labels: Tensor, inputs: InputSpec, *, device: torch.device, seed: int = 0
) -> Problem:
    """The gradients of one FedSGD client for each image.

    Args:
        model: A model spec, such as ``lenet``.
        images: (n, channels, height, width) in [0, 1].
        labels: (n,) class indices.
        inputs: The model's input domain.
        device: Where the attack is to run.
        seed: Of the weights.

    Raises:
        ValueError: If there is no such model.
    """
    victim = Victim(model=build_model(model, inputs, seed=seed).to(device), inputs=inputs, name=model)
    images, labels = images.to(device), labels.to(device)
    observations = observe(victim, images, labels, batch_size=1)
    return Problem(victim=victim, images=images, labels=labels, observations=observations)


def observe(victim: Victim, images: Tensor, labels: Tensor, *, batch_size: int) -> list[Observation]:
    """What FedSGD clients with consecutive batches send, all at the weights that the victim's model has.

    Args:
        victim: The model, on the device of the images.
        images: (n, channels, height, width) in [0, 1].
        labels: (n,) class indices.
        batch_size: Images of one client; what is left over at the end is not sent.
    """
    named = dict(victim.model.named_parameters())
    weights = {name: value.detach().clone() for name, value in named.items()}
    buffers = {name: value.detach().clone() for name, value in victim.model.named_buffers()}
    observations = []
    for node in range(len(images) // batch_size):
        mine = slice(node * batch_size, (node + 1) * batch_size)
        loss = victim.training_loss(victim.inputs.normalise(images[mine]), labels[mine])
        gradients = torch.autograd.grad(loss, list(named.values()))
        observations.append(
            Observation(
                parameters=weights,
                buffers=buffers,
                update=dict(zip(named, gradients, strict=True)),
                kind="gradient",
                batch_size=batch_size,
                protocol=Protocol(batch_norm="buffers"),
                round=1,
                node=str(node),
            )
        )
    return observations
