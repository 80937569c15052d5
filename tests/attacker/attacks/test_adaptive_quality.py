"""Behind PRECODE real images are reconstructed once the noise is computed."""

from __future__ import annotations

import pytest
import torch

from attacker.attacks import build_attack, recover_noise
from attacker.metrics.similarity import ssim
from attacker.victim import Victim
from fl_precode.data import load_data
from fl_precode.defences.registry import apply_defence
from fl_precode.models import build_model
from tests.attacker.bottlenecked import client, normal

SEARCH = "iterations=200,total_variation=1e-6"
MODEL = "lenet"


@pytest.fixture(scope="module")
def photos():
    data = load_data("photos")
    images, labels = data.train.batch(range(3))  # of three photographs
    return data.inputs, data.inputs.normalise(images), labels.tolist()


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


def test_noise_recovery_reconstructs_what_precode_hides_from_the_plain_attack(photos):
    undefended = similarity(f"inverting-gradients:{SEARCH}", "none", photos)
    plain = similarity(f"inverting-gradients:{SEARCH}", "precode", photos)
    recovered = similarity(f"noise-recovery:{SEARCH}", "precode", photos)
    assert float(plain.max()) < 0.1
    assert bool((recovered > plain + 0.3).all()), (plain, recovered)
    assert float(recovered.mean()) > 0.6 * float(undefended.mean()), (undefended, recovered)
