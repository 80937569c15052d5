"""PRECODE in front of the classifier does not protect one image from the layers' equations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attacker.attacks import Outcome, ThroughBottleneck, build_attack
from attacker.metrics.similarity import psnr
from attacker.victim import Victim
from fl_precode import VariationalBottleneck
from fl_precode.defences.registry import apply_defence
from fl_precode.models import build_model
from fl_precode.models.lenet import init_uniform
from tests.attacker import tiny
from tests.attacker.attacks.test_layerwise import faces
from tests.attacker.chains import attacked

SPEC = tiny.inputs(channels=2, side=6)


@pytest.mark.parametrize("uniform", [True, False])
def test_lenet_with_precode_in_single_precision(uniform):
    inputs, images, labels = faces(2)
    model = apply_defence("precode", build_model("lenet", inputs, seed=0), inputs, seed=0)
    if uniform:
        torch.manual_seed(0)
        init_uniform(model)
    victim = Victim(model=model, inputs=inputs)
    seen = [tiny.observe(victim, inputs.normalise(images[i : i + 1]), labels[i : i + 1].tolist()) for i in range(2)]
    found = build_attack("through-bottleneck")(victim, seen, generator=torch.Generator())
    quality = psnr(inputs.denormalise(torch.cat([one.inputs for one in found])), images)
    assert float(quality.min()) > 60, quality
    assert [one.labels.item() for one in found] == labels.tolist()


def test_noise_and_layers_behind_do_not_matter():
    model = nn.Sequential(
        nn.Conv2d(2, 12, 3), nn.Tanh(), nn.Flatten(), VariationalBottleneck(192, latent=5), nn.Linear(192, 30),
        nn.ReLU(), nn.LayerNorm(30), nn.Dropout(0.5), nn.Linear(30, 4, bias=False),
    )  # fmt: skip
    _, truths, found = attacked(SPEC, model, method="through-bottleneck", count=2)
    for x, one in zip(truths, found, strict=True):
        assert one.outcome is Outcome.CONVERGED, one.reason
        torch.testing.assert_close(one.inputs, x, rtol=0, atol=1e-7)


def test_a_bottleneck_that_is_entered_by_the_image_is_one_division():
    model = nn.Sequential(nn.Flatten(), VariationalBottleneck(72, latent=3), nn.Linear(72, 4))
    _, (x,), (found,) = attacked(SPEC, model, method="through-bottleneck")
    torch.testing.assert_close(found.inputs, x, rtol=0, atol=1e-10)
    assert ThroughBottleneck().name == "through-bottleneck"
