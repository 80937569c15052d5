"""Search with an image prior on an update under noise: the other half of E-I2F.

E-I2F is the error of an attacker without a prior. Alone it reads as advice on how much noise hides an image, a
wrong one: where it foresees nothing to be seen, a search with total variation has brought images of a LeNet back.
Evaluation only.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import torch
from torch import Generator, Tensor

from attacker.attacks.base import Reconstruction
from attacker.attacks.registry import build_attack
from attacker.audit.record.schema import NoiseAttack, finite
from attacker.audit.scoring.leakage_images import LeakingImage
from attacker.audit.scoring.similarity import as_images
from attacker.metrics.similarity import ssim
from attacker.reasons import because
from fl_precode.observation import Observation, Protocol

EXPECTED: Final = 0.25
"""RMSE without a prior at which the search is tried: what an image and a grey square differ by."""

PRIORS: Final = (1e-6, 1e-4, 1e-2, 1e-1)
"""Weights of the total variation, each tried; what works depends on the size of the gradients."""

ITERATIONS: Final = 250
SECONDS: Final = 15.0
_IMAGES = 2
_PROBES = 5, 25


def attack_under_noise(
    images: Sequence[LeakingImage], unit_rmse: float, *, seconds: float = SECONDS, seed: int = 0
) -> NoiseAttack:
    """Add noise to the gradients of up to two images and search for them, with the labels known.

    Args:
        images: Single images and the weights at which their gradients are taken, of a model that draws no noise.
        unit_rmse: E-I2F for noise of standard deviation 1.
        seconds: For all searches; where they would take longer, none is made.
        seed: Seed of the noise and of the searches.

    Returns:
        What was reconstructed, of each image by the weight of the prior that did best, by the truth.
    """
    std = EXPECTED / unit_rmse
    some = images[:: max(1, len(images) // _IMAGES)][:_IMAGES]
    observations = [_noisy(image, std, seed + number) for number, image in enumerate(some)]
    blank = NoiseAttack(std=std, expected_rmse=EXPECTED, iterations=ITERATIONS, ssim=[], reason="")
    expected = _seconds_of_one(some, observations, seed) * len(PRIORS) * ITERATIONS
    if expected > seconds:
        return blank.model_copy(update={"reason": str(because("noise-attack-needs-time", seconds=seconds))})
    scores = [_scores(some, _search(some, observations, weight, ITERATIONS, seed)) for weight in PRIORS]
    best = [max(each, key=lambda score: -1.0 if score is None else score) for each in zip(*scores, strict=True)]
    return blank.model_copy(update={"ssim": best})


def _seconds_of_one(images: Sequence[LeakingImage], observations: Sequence[Observation], seed: int) -> float:
    """Seconds of one iteration, without what a search needs once."""
    taken = []
    for iterations in _PROBES:
        began = time.perf_counter()
        _search(images, observations, PRIORS[0], iterations, seed)
        taken.append(time.perf_counter() - began)
    few, many = taken
    # What a process needs once, in its first search, can outweigh twenty iterations: then the second search is a bound.
    return (many - few) / (_PROBES[1] - _PROBES[0]) if many > few else many / _PROBES[1]


def _noisy(image: LeakingImage, std: float, seed: int) -> Observation:
    of, pixels = image.released(image.generator())
    drawn = Generator().manual_seed(seed)
    noisy = {
        name: value + std * torch.randn(value.shape, generator=drawn).to(value)
        for name, value in of.gradient(pixels).items()
    }
    kept = {name: image.parameters.get(name, torch.empty(0)) for name in noisy}
    return Observation(
        parameters=kept,
        buffers=dict(image.buffers),
        update=noisy,
        kind="gradient",
        batch_size=1,
        protocol=Protocol(name="fedsgd", local_steps=1, batch_size=1, defence=f"noise:std={std:g}"),
        round=1,
        node=str(seed),
    )


def _search(
    images: Sequence[LeakingImage], observations: Sequence[Observation], weight: float, iterations: int, seed: int
) -> list[Reconstruction]:
    attack = build_attack(f"inverting-gradients:iterations={iterations},learning_rate=0.1,total_variation={weight:g}")
    labels: list[Tensor | None] = [image.label for image in images]
    return list(attack(images[0].victim, observations, generator=Generator().manual_seed(seed), labels=labels))


def _scores(images: Sequence[LeakingImage], reconstructions: Sequence[Reconstruction]) -> list[float | None]:
    scores: list[float | None] = []
    for image, reconstruction in zip(images, reconstructions, strict=True):
        back = as_images(reconstruction, image.victim.inputs)
        scores.append(None if back is None else finite(float(ssim(back.nan_to_num(nan=0.5), image.image.to(back)))))
    return scores
