"""The benchmarks' short training: repeatable, kept, and good for something."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.training import CIFAR10, CLASSES, cifar10, trained
from fl_precode.data import load_data

DIGITS = load_data("digits")
TINY = "resnet20:norm=group"


def state(found):
    return {name: value.clone() for name, value in found.model.state_dict().items()}


def same(first, second):
    return all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("spec", [TINY, "resnet20"])
@pytest.mark.parametrize("defence", ["none", "precode:latent=4"])
def test_the_same_arguments_give_the_same_weights(spec, defence):
    arguments = {"steps": 2, "seed": 1, "batch": 8, "defence": defence}
    before = torch.random.get_rng_state()
    first, again = (trained(spec, DIGITS, **arguments) for _ in range(2))
    assert same(state(first), state(again))
    assert first.accuracy == again.accuracy
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not any(module.training for module in first.model.modules())
    for changed in ({"steps": 3}, {"seed": 2}, {"batch": 9}, {"learning_rate": 0.1}):
        assert not same(state(first), state(trained(spec, DIGITS, **{**arguments, **changed}))), changed


def test_training_learns():
    untrained, found = (trained("resnet20", DIGITS, steps=steps, seed=0) for steps in (0, 40))
    assert untrained.accuracy < 0.3
    assert found.accuracy > 0.7
    assert found.seconds_per_step > 0


def test_weights_are_found_again_only_for_equal_arguments_and_images(tmp_path):
    folder = tmp_path / "weights"
    made = trained("resnet20", DIGITS, steps=1, seed=0, cache=folder)
    found = trained("resnet20", DIGITS, steps=1, seed=0, cache=folder)
    assert (made.cached, found.cached) == (False, True)
    assert same(state(made), state(found)), "buffers too"
    assert (found.accuracy, found.seconds_per_step) == (made.accuracy, made.seconds_per_step)
    assert not any(module.training for module in found.model.modules())
    assert [file.suffix for file in folder.iterdir()] == [".safetensors"]
    other = replace(DIGITS, train=DIGITS.test)
    for data, changed in ((other, {}), (DIGITS, {"seed": 1}), (DIGITS, {"defence": "precode:latent=4"})):
        assert not trained("resnet20", data, **{"steps": 1, "seed": 0, "cache": folder, **changed}).cached


@pytest.mark.parametrize("batch", [0, 10_000])
def test_a_batch_that_the_images_do_not_fill_is_refused(batch):
    with pytest.raises(ValueError, match=f"expected a batch of 1 to {len(DIGITS.train)} images.*got {batch}"):
        trained("mlp", DIGITS, steps=1, seed=0, batch=batch)


@pytest.mark.realdata
def test_cifar10_comes_in_the_official_order():
    if not CIFAR10.exists():
        pytest.skip(f"{CIFAR10} is absent")
    data, later = cifar10(train=12, test=3), cifar10(train=2, test=3, skip=10)
    assert [CLASSES[label] for label in data.train.labels[:5]] == ["frog", "truck", "truck", "deer", "automobile"]
    assert [CLASSES[label] for label in data.test.labels] == ["cat", "ship", "ship"]
    assert data.train.images.shape == (12, 3, 32, 32)
    assert torch.equal(data.train.images[10:], later.train.images)
    assert data.train.images.float().std() > 30


def test_absent_images_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr("benchmarks.training.CIFAR10", tmp_path / "gone.npz")
    with pytest.raises(FileNotFoundError, match="gone.npz; train on other images"):
        cifar10()
