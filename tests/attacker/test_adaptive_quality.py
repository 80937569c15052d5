"""Behind PRECODE real images come back as they do without it, once the noise is computed."""

from __future__ import annotations

import pytest
import torch

from attacker.attacks import build_attack, recover_noise
from attacker.metrics import ssim
from attacker.victim import Victim
from fl_precode.data import load_dataset
from fl_precode.defences import apply_defence
from fl_precode.models import build_model
from tests.attacker.bottlenecked import client, normal

ITERATIONS = "iterations=300,total_variation=0.1"
MODEL = "lenet:activation=relu"


@pytest.fixture(scope="module")
def photos():
    data = load_dataset("photos")
    images = torch.stack([data.train[index][0] for index in (0, 800)])
    return data.inputs, images, [data.train[index][1] for index in (0, 800)]


def similarity(spec, defence, photos):
    inputs, images, labels = photos
    model = apply_defence(defence, build_model(MODEL, inputs, seed=0), inputs, seed=0)
    victim = Victim(model=model, inputs=inputs)
    seen = [
        client(
            victim,
            images[i : i + 1],
            [labels[i]],
            [normal(1, 256, seed=i).float()] if defence == "precode" else [],
            node=str(i),
        )
        for i in range(len(images))
    ]
    if defence == "precode":
        for i, one in enumerate(seen):  # float32 gradients
            assert float((recover_noise(victim, one).noise[0] - normal(1, 256, seed=i)).square().mean()) < 1e-8
    found = build_attack(spec)(victim, seen, generator=torch.Generator().manual_seed(0))
    pictures = inputs.denormalise(torch.cat([one.inputs for one in found])).clamp(0, 1)
    return ssim(pictures, inputs.denormalise(images))


def test_noise_recovery_reaches_what_the_plain_attack_reaches_without_precode(photos):
    undefended = similarity(f"inverting-gradients:{ITERATIONS}", "none", photos)
    plain = similarity(f"inverting-gradients:{ITERATIONS}", "precode", photos)
    recovered = similarity(f"noise-recovery:{ITERATIONS}", "precode", photos)
    assert bool((recovered > plain + 0.2).all()), (plain, recovered)
    assert float(recovered.mean()) >= float(undefended.mean()) - 0.02, (undefended, recovered)
