"""Problems that layer-wise inversion does not fit: each layer is named, and nothing wrong is returned."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from attacker.attacks import LayerwiseInversion, Outcome, ThroughBottleneck
from attacker.reasons import Reason, because
from fl_precode import Protocol, extend_conv
from tests.attacker import tiny
from tests.attacker.analytic.test_layer_chain import Residual, Shortcut

SPEC = tiny.inputs(channels=2, side=8)


def run(attack, model, x=None, label=1, **changes):
    victim = tiny.victim(model, SPEC)
    x = tiny.images(SPEC, 1) if x is None else x
    (found,) = attack(victim, [tiny.observe(victim, x, [label] * len(x), **changes)], generator=torch.Generator())
    return found


def refused(found, expected):
    """By a code, or a reason with its values."""
    assert (found.outcome, found.inputs) == (Outcome.NOT_APPLICABLE, None)
    assert expected in (found.reason if isinstance(expected, Reason) else found.reason_codes)


def behind(*layers, features):
    return nn.Sequential(nn.Conv2d(2, 12, 3, padding=1), *layers, nn.Flatten(), nn.Linear(features, 4))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (lambda: behind(nn.MaxPool2d(2), features=192), because("layer-keeps-largest", name="1", kind="MaxPool2d")),
        (lambda: behind(nn.GroupNorm(1, 12), features=768), because("layer-not-solvable", name="1", kind="GroupNorm")),
        (lambda: behind(nn.GELU(), features=768), because("layer-not-solvable", name="1", kind="GELU")),
        (
            lambda: behind(nn.Conv2d(12, 12, 3, padding=1, padding_mode="reflect"), features=768),
            "layer-not-solvable",
        ),
        (Residual, because("chain-broken", after="fc", before="two")),
        (lambda: Shortcut(1.0), because("chain-bypassed", name="conv.weight")),
        (lambda: nn.Sequential(nn.Conv2d(2, 4, 8), nn.Flatten()), "no-linear-layer"),
        (lambda: tiny.convnet(SPEC, bottleneck=True), "bottleneck-noise-unknown"),
    ],
)
def test_what_does_not_fit_is_named(model, expected):
    refused(run(LayerwiseInversion(), model()), expected)


def test_a_shortcut_behind_the_start_does_not_matter():
    model = Shortcut(0.0)
    model.conv = nn.Conv2d(2, 12, 3, padding=1)
    model.fc1, model.around = nn.Linear(768, 8), nn.Linear(768, 4)
    x = tiny.images(SPEC, 1)
    found = run(LayerwiseInversion(), model, x)
    torch.testing.assert_close(found.inputs, x, rtol=0, atol=1e-7)


def test_layers_that_run_twice_are_named():
    conv = nn.Conv2d(2, 2, 3, padding=1)
    model = nn.Sequential(conv, nn.Tanh(), conv, nn.Flatten(), nn.Linear(128, 4))
    refused(run(LayerwiseInversion(), model), because("layer-shared", name="0"))


def test_batches_are_refused_by_size_and_by_rank():
    model = behind(nn.Sigmoid(), features=768)
    pair = tiny.images(SPEC, 2)
    refused(run(LayerwiseInversion(), model, pair), because("several-images", size=2))
    victim = tiny.victim(model, SPEC)
    seen = replace(tiny.observe(victim, pair, [1, 2]), batch_size=None)
    (found,) = LayerwiseInversion()(victim, [seen], generator=torch.Generator())
    refused(found, because("several-images.rank", name="3.weight", rank=2))
    alone = replace(tiny.observe(victim, pair[:1], [1]), batch_size=None)
    (found,) = LayerwiseInversion()(victim, [alone], generator=torch.Generator())
    torch.testing.assert_close(found.inputs, pair[:1], rtol=0, atol=1e-7)


def test_a_gradient_of_zero_is_refused():
    model = behind(nn.Sigmoid(), features=768)
    victim = tiny.victim(model, SPEC)
    seen = tiny.observe(victim, tiny.images(SPEC, 1), [1])
    silent = replace(seen, update={name: torch.zeros_like(value) for name, value in seen.update.items()})
    (found,) = LayerwiseInversion()(victim, [silent], generator=torch.Generator())
    refused(found, because("gradient-is-zero", name="3.bias"))


def test_a_classifier_without_bias_needs_the_scale():
    model = nn.Sequential(nn.Conv2d(2, 12, 3), nn.Tanh(), nn.Flatten(), nn.Linear(432, 4, bias=False))
    protocol = Protocol(name="fedavg", local_steps=1)
    refused(run(LayerwiseInversion(), model, learning_rate=0.1, protocol=protocol), "learning-rate-unknown")


def test_what_takes_too_much_memory_is_refused(monkeypatch):
    from attacker.attacks.closed_form import estimate

    monkeypatch.setattr(estimate, "default_budget", lambda device: 1000)
    refused(run(LayerwiseInversion(), behind(nn.Sigmoid(), features=768)), "out-of-memory")


def test_through_bottleneck_needs_one_with_a_fully_connected_encoder():
    model = behind(nn.Sigmoid(), features=768)
    refused(run(ThroughBottleneck(), model), "no-bottleneck")
    deep = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.Sigmoid(), nn.Conv2d(4, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 4)
    )
    defended = extend_conv(deep, torch.zeros(1, 2, 8, 8), latent=2)
    refused(run(ThroughBottleneck(), defended), "bottleneck-is-convolutional")
    refused(run(LayerwiseInversion(), defended), "bottleneck-noise-unknown")
