"""Images are reconstructed from what entered a deep convolution, and nothing is claimed where noise hides it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from attacker.attacks import ConvolutionSpan, Outcome, build_attack
from attacker.metrics.similarity import match_batch, psnr
from attacker.simulate import observe
from attacker.victim import Victim
from fl_precode import Protocol, VariationalBottleneck
from fl_precode.models import InputSpec
from tests.attacker.attacks.test_attacks_raise import check_refused

SPEC = InputSpec(channels=3, height=12, width=12, classes=5, mean=(0.5,) * 3, std=(0.25,) * 3)
FEDSGD = Protocol(name="fedsgd", batch_norm="buffers")


class Residual(nn.Module):
    """A stem, a convolution of stride 2, and a residual block of 36 positions and as many channels as it is given."""

    def __init__(self, channels: int = 64, *, pool: bool = False, norm: bool = True, middle: nn.Module | None = None):
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.down = nn.MaxPool2d(2) if pool else nn.Conv2d(24, 48, 3, stride=2, padding=1)
        self.wide = nn.Conv2d(24 if pool else 48, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()
        self.inner = nn.Conv2d(channels, channels, 3, padding=1)
        self.outer = nn.Conv2d(channels, channels, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.middle = nn.Identity() if middle is None else middle
        self.head = nn.Linear(channels, 5)

    def forward(self, x):
        x = self.down(torch.relu(self.stem(x)))
        x = self.act(self.norm(self.wide(self.act(x))))
        x = self.act(x + self.outer(self.act(self.inner(x))))
        return self.head(self.middle(x.mean((2, 3))))


def summed(scores, labels):
    return nn.functional.cross_entropy(scores, labels, reduction="sum")


def seen_of(batch=1, *, seed=0, protocol=FEDSGD, model=None, loss=None):
    torch.manual_seed(seed)
    victim = Victim(model=Residual() if model is None else model, inputs=SPEC, loss=loss)
    rough = torch.rand(batch, 3, 5, 5)
    images = nn.functional.interpolate(rough, size=(12, 12), mode="bilinear")
    labels = torch.arange(batch) % 5
    (seen,) = observe(victim, SPEC.normalise(images), labels, batch_size=batch, protocol=protocol)
    return victim, seen, images, labels


def run(victim, seen, labels=None, *, attack=None, seed=0):
    granted = None if labels is None else [labels]
    attack = ConvolutionSpan() if attack is None else attack
    (found,) = attack(victim, [seen], generator=torch.Generator().manual_seed(seed), labels=granted)
    return found


def quality(found, images):
    restored = SPEC.denormalise(found.inputs).clamp(0, 1)
    order = match_batch(restored, images)
    return psnr(restored[order], images), order


def test_one_image_behind_a_residual_block_is_exact():
    victim, seen, images, labels = seen_of()
    found = run(victim, seen)
    decibels, _ = quality(found, images)
    assert float(decibels.min()) > 50, found.reason
    assert found.outcome is Outcome.CONVERGED
    assert found.labels.tolist() == labels.tolist()
    assert found.reason_codes == ("map-inverted",)
    assert torch.equal(found.inputs, run(victim, seen).inputs), "the same seed gives the same image"


@pytest.mark.parametrize("loss", [None, summed])
def test_images_of_a_batch_are_told_apart_with_their_labels(loss):
    victim, seen, images, labels = seen_of(3, model=Residual(160), loss=loss)
    found = run(victim, seen, labels)
    decibels, order = quality(found, images)
    assert float(decibels.min()) > 40, found.reason
    assert found.labels[order].tolist() == labels.tolist()


@pytest.mark.parametrize("iterations", [1, 200])
def test_behind_a_pooling_the_gradients_before_it_help_and_only_exact_images_are_called_so(iterations):
    victim, seen, images, labels = seen_of(model=Residual(pool=True))
    found = run(victim, seen, labels, attack=ConvolutionSpan(iterations=iterations))
    decibels = float(quality(found, images)[0])
    assert (found.outcome is Outcome.CONVERGED) == (decibels > 45), (decibels, found.reason)
    assert (decibels > 45) == (iterations > 1), (decibels, found.reason)


@pytest.mark.parametrize("frozen", [("stem.",), ("stem.", "down."), ("stem.", "down.", "wide.", "norm.")])
@pytest.mark.parametrize("pool", [False, True])
def test_layers_that_did_not_move_are_walked_through_as_far_as_others_tell(frozen, pool):
    victim, seen, images, labels = seen_of(model=Residual(pool=pool))
    still = {name: value for name, value in seen.parameters.items() if name.startswith(frozen)}
    part = replace(
        seen,
        update={name: value for name, value in seen.update.items() if name not in still},
        parameters={name: value for name, value in seen.parameters.items() if name not in still},
        buffers={**seen.buffers, **still},
        frozen=frozenset(still),
    )
    found = run(victim, part, labels)
    assert found.inputs is not None, found.reason
    grey = psnr(images.mean((2, 3), keepdim=True).expand_as(images), images)
    assert float(quality(found, images)[0]) > float(grey), found.reason


def test_settings_of_the_last_search_change_the_image():
    victim, seen, _, labels = seen_of(model=Residual(pool=True))
    specs = ("iterations=20", "iterations=40", "iterations=20,learning_rate=0.3", "iterations=20,total_variation=0.5")
    images = [run(victim, seen, labels, attack=build_attack(f"convolution-span:{spec}")).inputs for spec in specs]
    assert all(not torch.equal(images[0], other) for other in images[1:])
    for wrong in ("iterations=0", "learning_rate=0", "total_variation=-1"):
        with pytest.raises(ValueError, match=wrong.partition("=")[0]):
            build_attack(f"convolution-span:{wrong}")


@pytest.mark.parametrize("scale", [1e-1, 1e-3, 1e-5])
def test_noise_on_the_update_gives_no_image_that_is_wrongly_called_exact(scale):
    victim, seen, images, labels = seen_of()
    torch.manual_seed(1)
    noisy = {name: value + scale * value.abs().mean() * torch.randn_like(value) for name, value in seen.update.items()}
    found = run(victim, replace(seen, update=noisy), labels)
    if scale > 1e-2:
        assert found.inputs is None
        assert "span-hidden" in found.reason_codes
    assert found.outcome is not Outcome.CONVERGED or float(quality(found, images)[0]) > 40, found.reason


def test_what_it_does_not_fit_is_refused():
    for model, batch, protocol, code in (
        (Residual(), 2, FEDSGD, "convolution-too-narrow"),
        (Residual(), 1, Protocol(name="fedsgd", batch_norm="batch"), "normalised-by-batch"),
        (Residual(middle=VariationalBottleneck(64, latent=4)), 1, FEDSGD, "layers-draw"),
        (nn.Sequential(nn.Flatten(), nn.Linear(432, 5)), 1, FEDSGD, "no-convolutions"),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(800, 5)), 1, FEDSGD, "convolutions-not-fed"),
    ):
        victim, seen, _, labels = seen_of(batch, model=model, protocol=protocol)
        check_refused(run(victim, seen, labels), code)
    victim, seen, _, _ = seen_of()
    check_refused(run(victim, replace(seen, batch_size=None)), "batch-size-unknown")
