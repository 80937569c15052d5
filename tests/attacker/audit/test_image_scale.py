"""Images of unannounced normalisation: their scale is estimated from reconstructions, never from the truth."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sklearn.datasets import load_digits, load_sample_images
from torch import nn
from torch.nn import functional as F

from attacker.attacks.base import Outcome, Reconstruction
from attacker.attacks.registry import build_attack
from attacker.audit.inputs.image_scale import estimate_scale
from attacker.audit.scoring.similarity import as_images
from attacker.metrics.similarity import psnr
from attacker.victim import Victim
from fl_precode import Observation, Protocol
from fl_precode.models.input_spec import InputSpec
from fl_precode.tape.notes import input_spec

DIGITS = torch.tensor(load_digits().images[:4] / 16, dtype=torch.float32)[:, None]
PHOTO = F.interpolate(
    torch.tensor(load_sample_images().images[1] / 255, dtype=torch.float32).permute(2, 0, 1)[None, :, :256, :256],
    (16, 16),
)

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SCALES = {
    "[0, 1]": (DIGITS, (0.0,), (1.0,)),
    "[-1, 1]": (DIGITS, (0.5,), (0.5,)),
    "MNIST": (DIGITS, (0.1307,), (0.3081,)),
    "[0, 255]": (DIGITS, (0.0,), (1 / 255,)),
    "photograph in [-1, 1]": (PHOTO, (0.5,) * 3, (0.5,) * 3),
}


def normalised(images, mean, std):
    known = replace(input_spec("x".join(map(str, images.shape[1:])), 10), mean=mean, std=std)
    return known.normalise(images)


def reconstructed(inputs, *, outcome=Outcome.CONVERGED, iterations=0, loss=0.0, start=None):
    return Reconstruction(
        inputs=inputs,
        labels=None,
        outcome=outcome,
        iterations=iterations,
        matching_loss=loss,
        starting_loss=start,
    )


def blind(images):
    return input_spec("x".join(map(str, images.shape[1:])), 10)


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_the_usual_scales_are_told_apart(name, noise):
    """Exact results, and those of a search that is 5 % of the contrast off."""
    images, mean, std = SCALES[name]
    found = normalised(images, mean, std) + noise / std[0] * torch.randn(images.shape)
    one = reconstructed(found) if noise == 0 else reconstructed(found, iterations=9, loss=1e-3)
    scale = estimate_scale(blind(images), [one])
    assert (scale.inputs.mean, scale.inputs.std) == (mean, std)
    assert scale.assumption.code == "scale-guessed"
    assert scale.assumption.line.startswith("mean = [")


def test_a_scale_of_their_own_is_the_range_of_the_values():
    found = normalised(DIGITS, (0.9,), (0.1,))  # -9 to 1, as none of the usual scales has it
    scale = estimate_scale(blind(DIGITS), [reconstructed(found)])
    assert torch.allclose(scale.inputs.denormalise(found), DIGITS, atol=1e-5)
    assert "values in [-9, 1]" in scale.assumption.sentence


def test_statistics_of_each_channel_are_found_where_the_colours_reach_their_ends():
    images = torch.cat([PHOTO, torch.zeros_like(PHOTO), torch.ones_like(PHOTO)])
    scale = estimate_scale(blind(images), [reconstructed(normalised(images, *IMAGENET))])
    assert (scale.inputs.mean, scale.inputs.std) == IMAGENET


def test_a_known_scale_is_left_alone():
    known = InputSpec(channels=1, height=8, width=8, classes=10, mean=(0.0,), std=(1.0,))
    scale = estimate_scale(known, [reconstructed(normalised(DIGITS, (0.5,), (0.5,)))])
    assert scale.inputs is known
    assert scale.assumption is None


def test_results_that_are_far_off_do_not_outvote_a_good_one():
    wild = reconstructed(
        30 * torch.randn(4, 1, 8, 8), outcome=Outcome.ITERATION_LIMIT, iterations=9, loss=0.5, start=1.0
    )
    scale = estimate_scale(blind(DIGITS), [wild, reconstructed(DIGITS.clone()), wild])
    assert scale.inputs.mean == (0.0,)


def test_where_nothing_can_be_trusted_the_scale_is_said_to_be_unknown():
    off = reconstructed(
        normalised(DIGITS, (0.5,), (0.5,)), outcome=Outcome.ITERATION_LIMIT, iterations=9, loss=0.3, start=1.0
    )
    shown = estimate_scale(blind(DIGITS), [off])
    assert shown.assumption.code == "scale-unknown"
    assert shown.inputs.mean == (0.5,), "pictures are shown as fits best"
    nothing = estimate_scale(blind(DIGITS), [Reconstruction.not_applicable("no")])
    assert nothing.assumption.code == "scale-unknown"
    assert "no attack reconstructed an image" in nothing.assumption.sentence


@pytest.mark.parametrize("values", [float("nan"), 0.25], ids=["NaN", "one colour"])
def test_odd_values_are_no_scale(values):
    scale = estimate_scale(blind(DIGITS), [reconstructed(torch.full((1, 1, 8, 8), values))])
    assert scale.inputs.mean == (0.0,)


@pytest.mark.parametrize(("mean", "std"), [((0.0,), (1.0,)), ((0.5,), (0.5,)), ((0.1307,), (0.3081,))])
@pytest.mark.parametrize(
    "attack", ["dlg:iterations=300", "inverting-gradients:preset=precode-paper,iterations=500,learning_rate=0.1"]
)
def test_searches_reconstruct_images_of_any_scale_when_only_their_shape_is_known(attack, mean, std):
    """A small smooth convolution, one image, one step of SGD."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 12, 5, 2, 2), nn.Sigmoid(), nn.Flatten(), nn.Linear(192, 10))
    inputs, x = blind(DIGITS), normalised(DIGITS[:1], mean, std)
    assert not inputs.scale_known
    gradients = torch.autograd.grad(F.cross_entropy(model(x), torch.tensor([0])), list(model.parameters()))
    names = [name for name, _ in model.named_parameters()]
    seen = Observation(
        parameters={name: value.detach() for name, value in model.named_parameters()},
        buffers={},
        update={name: -0.1 * value for name, value in zip(names, gradients, strict=True)},
        kind="weights",
        batch_size=1,
        protocol=Protocol(local_steps=1, learning_rate=0.1),
        round=1,
        node="1",
    )
    (found,) = build_attack(attack)(
        Victim(model=model, inputs=inputs), [seen], generator=torch.Generator().manual_seed(1)
    )
    scale = estimate_scale(inputs, [found])
    assert float(psnr(as_images(found, scale.inputs), DIGITS[:1])) > 30
