"""Problem of a measurement: an untrained model, and the gradients of some images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacker.metrics.similarity import psnr
from attacker.simulate import observe
from attacker.victim import Victim
from fl_precode.models import build_model
from fl_precode.models.input_spec import InputSpec
from fl_precode.observation import Observation


@dataclass(frozen=True, kw_only=True)
class BenchProblem:
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

    def quality(self, reconstructions: Tensor) -> float:
        """Mean PSNR in dB of reconstructions of the first images, (m, channels, height, width), normalised."""
        images = self.victim.inputs.denormalise(reconstructions).clamp(0, 1)
        return float(psnr(images, self.images[: len(reconstructions)]).mean())


def make_problem(
    model: str, images: Tensor, labels: Tensor, inputs: InputSpec, *, device: torch.device, seed: int = 0
) -> BenchProblem:
    """The gradients of one FedSGD client for each image.

    Args:
        model: A model spec, such as ``lenet``.
        images: (n, channels, height, width) in [0, 1].
        labels: (n,) class indices.
        inputs: The model's input domain.
        device: Where the attack is to run.
        seed: Seed of the weights.

    Raises:
        ValueError: If there is no such model.
    """
    victim = Victim(model=build_model(model, inputs, seed=seed).to(device), inputs=inputs, name=model)
    images, labels = images.to(device), labels.to(device)
    observations = observe(victim, inputs.normalise(images), labels, batch_size=1)
    return BenchProblem(victim=victim, images=images, labels=labels, observations=observations)
