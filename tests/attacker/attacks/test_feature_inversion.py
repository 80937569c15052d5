"""Images behind a frozen trunk are reconstructed from the head's gradient, as far as its features determine them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from attacker.attacks import FeatureInversion, Outcome, build_attack
from attacker.metrics.similarity import match_batch, psnr
from attacker.reasons import because
from fl_precode import Protocol, VariationalBottleneck
from tests.attacker.attacks.test_attacks_raise import check_refused
from tests.attacker.heads import SPEC, digits, frozen_trunk, seen_of
from tests.partly_trained_models import Adapted, low_rank

QUICK = FeatureInversion(steps=200, total_variation=1e-5)
FEDAVG = {"name": "fedavg", "learning_rate": 0.1}


def run(victim, observation, *, attack=QUICK, seed=0, labels=None):
    granted = None if labels is None else [labels]
    (found,) = attack(victim, [observation], generator=torch.Generator().manual_seed(seed), labels=granted)
    return found


def quality(found, x):
    restored, truth = SPEC.denormalise(found.inputs).clamp(0, 1), SPEC.denormalise(x)
    order = match_batch(restored, truth)
    return float(psnr(restored[order], truth).min()), order


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("batch", [1, 4])
def test_images_are_reconstructed_from_wide_features(batch, dtype):
    x, y = digits(batch, dtype)
    found = run(*seen_of(frozen_trunk(), x, y))
    assert found.inputs.dtype == dtype
    assert found.reason_codes == ("features-found",), found.reason
    decibel, order = quality(found, x)
    assert decibel > 25
    assert found.labels[order].tolist() == y.tolist()
    assert found.matching_loss < 1e-3


def test_local_steps_and_an_unknown_number_of_images():
    x, y = digits(3)
    several = Protocol(**FEDAVG, local_steps=3, batch_size=3, momentum=0.5)
    for protocol in (None, Protocol(**FEDAVG, local_steps=1), several):
        victim, seen = seen_of(frozen_trunk(), x, y, protocol=protocol)
        assert quality(run(victim, seen), x)[0] > 25, protocol
    victim, seen = seen_of(frozen_trunk(), x, y)
    assert quality(run(victim, replace(seen, batch_size=None)), x)[0] > 25
    check_refused(run(victim, replace(seen, batch_size=2)), "rank-unclear")


def test_one_image_needs_no_loss_no_scale_and_no_classifier():
    x, y = digits(1)
    unannounced = Protocol(name="fedavg", learning_rate=0.1, local_steps=4, momentum=0.9)
    victim, seen = seen_of(frozen_trunk(), x, y, protocol=unannounced)
    assert quality(run(victim, replace(seen, protocol=Protocol(name="fedavg"))), x)[0] > 25
    deep = frozen_trunk(nn.Sequential(nn.Linear(288, 20), nn.Sigmoid(), nn.Linear(20, 10)))
    assert quality(run(*seen_of(deep, x, y)), x)[0] > 25
    noisy = frozen_trunk(nn.Sequential(VariationalBottleneck(288, latent=4), nn.Linear(288, 10)))
    assert quality(run(*seen_of(noisy, x, y)), x)[0] > 25, "its encoder is the head, whatever noise it draws"
    torch.manual_seed(0)
    assert quality(run(*seen_of(Adapted(), x, y)), x)[0] > 25, "an adapter is a head, too"


def test_directions_are_enough_for_one_image():
    x, y = digits(1)
    assert quality(run(*seen_of(low_rank(), x, y)), x)[0] > 25, "what enters LoRA's first layer"
    bare = frozen_trunk(nn.Sequential(nn.Linear(288, 20, bias=False), nn.Sigmoid(), nn.Linear(20, 10)))
    assert quality(run(*seen_of(bare, x, y)), x)[0] > 25
    check_refused(run(*seen_of(low_rank(), *digits(2))), "head-not-classifier")


def test_a_classifier_without_a_bias_tells_lengths_by_its_softmax():
    for count in (1, 3):
        x, y = digits(count)
        bare = frozen_trunk(nn.Sequential(nn.Linear(288, 10, bias=False)))
        found = run(*seen_of(bare, x, y), labels=y)
        assert quality(found, x)[0] > 25
        assert found.labels.sort().values.tolist() == y.tolist()


def test_batch_normalisation_is_replayed_as_announced():
    x, y = digits(4)
    for training in (True, False):
        victim, seen = seen_of(frozen_trunk(middle=(nn.BatchNorm2d(8),)), x, y, training=training)
        assert quality(run(victim, seen), x)[0] > 25, training
        if training:
            by_buffers = replace(seen, protocol=Protocol(name="fedsgd", batch_norm="buffers"))
            assert quality(run(victim, by_buffers), x)[0] < 20


def test_every_setting_changes_the_result():
    x, y = digits(4)
    victim, seen = seen_of(frozen_trunk(), x, y)
    usual = run(victim, seen, attack=build_attack("feature-inversion:steps=20"))
    assert torch.equal(run(victim, seen, attack=build_attack("feature-inversion:steps=20")).inputs, usual.inputs)
    assert usual.iterations == 20
    for change in ("total_variation=1", "learning_rate=0.2"):
        other = run(victim, seen, attack=build_attack(f"feature-inversion:steps=20,{change}"))
        assert not torch.equal(other.inputs, usual.inputs), change
    wrong = (y + 1) % 10
    few, many = (run(victim, seen, attack=FeatureInversion(steps=1, starts=n), labels=wrong) for n in (1, 3))
    assert few.reason_codes == many.reason_codes == ("features-found",)
    assert "best of 1 starts" in few.reason
    assert "best of 3 starts" in many.reason
    assert few.outcome is Outcome.ITERATION_LIMIT
    trained = frozen_trunk().requires_grad_(True)
    check_refused(run(*seen_of(trained, x, y)), because("trunk-was-trained", name="0", kind="Conv2d"))
    anyway = FeatureInversion(steps=200, total_variation=1e-5, any_trunk=True)
    assert quality(run(*seen_of(trained, x, y), attack=anyway), x)[0] > 25
    for text in ("steps=0", "starts=0", "learning_rate=0", "total_variation=-1"):
        with pytest.raises(ValueError, match=f"{text.partition('=')[0]}"):
            build_attack(f"feature-inversion:{text}")


def deep_head(activation=nn.Sigmoid):
    return frozen_trunk(nn.Sequential(nn.Linear(288, 20), activation(), nn.Linear(20, 10)))


def test_heads_of_two_layers_tell_images_apart_by_their_spans():
    x, y = digits(4)
    wide = frozen_trunk(nn.Sequential(nn.Linear(288, 80), nn.Tanh(), nn.Linear(80, 10)))
    victim, seen = seen_of(wide, x, y)
    for observation in (seen, replace(seen, batch_size=None)):
        found = run(victim, observation)
        assert found.reason_codes == ("features-found",), found.reason
        assert quality(found, x)[0] > 25
        assert found.labels is None


def test_errors_beside_rounding_are_allowed_where_they_are_announced():
    x, y = digits(4)
    victim, seen = seen_of(frozen_trunk(), x, y)
    generator = torch.Generator().manual_seed(0)
    noisy = {
        name: value + 1e-6 * value.norm() / value.numel() ** 0.5 * torch.randn(value.shape, generator=generator)
        for name, value in seen.update.items()
    }
    hidden = run(victim, replace(seen, update=noisy), attack=FeatureInversion(steps=1))
    assert hidden.reason_codes == ("features-found",)
    assert "and rounding explains" in hidden.reason
    known = run(victim, replace(seen, update=noisy), attack=FeatureInversion(steps=1, noise=1e-6))
    assert "and rounding explains" not in known.reason


@pytest.mark.parametrize(
    ("code", "make", "count"),
    [
        ("too-many-images", frozen_trunk, 10),
        ("head-not-classifier", lambda: deep_head(nn.Dropout), 2),
        ("features-behind-noise", lambda: frozen_trunk(middle=(nn.Dropout(0.2),)), 1),
        ("features-behind-noise", lambda: frozen_trunk(middle=(nn.Flatten(), VariationalBottleneck(288, latent=4))), 1),
        ("no-trunk", lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), 1),
        ("no-linear-layer", lambda: frozen_trunk(nn.Sequential(nn.Unflatten(1, (8, 36)), nn.Conv1d(8, 10, 36),
                                                               nn.Flatten())), 1),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(code, make, count):
    any_trunk = FeatureInversion(any_trunk=code == "no-linear-layer")
    check_refused(run(*seen_of(make(), *digits(count)), attack=any_trunk), code)


def test_protocols_that_do_not_fit_are_named():
    x, y = digits(2)
    for code, changes in {
        "several-batches": {"local_steps": 2, "batch_size": 1},
        "local-adam": {"local_steps": 1, "optimiser": "adam"},
        "weight-decay": {"local_steps": 2, "batch_size": 2, "weight_decay": 0.1},
        "scale-needed": {"learning_rate": None},
    }.items():
        victim, seen = seen_of(frozen_trunk(), x, y, protocol=Protocol(**FEDAVG))
        check_refused(run(victim, replace(seen, protocol=Protocol(**{**FEDAVG, **changes}))), code)


def test_images_that_share_a_gradient_are_named():
    x, y = digits(12)
    alike = frozen_trunk()
    nn.init.zeros_(alike[-1].weight)
    place = [1, 11]  # two ones
    assert y[place].tolist() == [1, 1]
    victim, seen = seen_of(alike, x[place], y[place])
    check_refused(run(victim, seen), because("features-share-rank", name="3.weight", rank=1, size=2))
    silent = replace(seen, update={name: torch.zeros_like(value) for name, value in seen.update.items()})
    assert run(victim, silent).outcome is Outcome.NOT_APPLICABLE
