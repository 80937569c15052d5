"""Problems that layer-wise inversion does not fit: each layer is named, and nothing wrong is returned."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from attacker.attacks import LayerwiseInversion, Outcome, ThroughBottleneck
from fl_precode import Protocol, extend_conv
from tests.attacker import tiny
from tests.attacker.analytic.test_layer_chain import Residual, Shortcut

SPEC = tiny.inputs(channels=2, side=8)


def run(attack, model, x=None, label=1, **changes):
    victim = tiny.victim(model, SPEC)
    x = tiny.images(SPEC, 1) if x is None else x
    (found,) = attack(victim, [tiny.observe(victim, x, [label] * len(x), **changes)], generator=torch.Generator())
    return found


def refused(found, words):
    assert (found.outcome, found.inputs) == (Outcome.NOT_APPLICABLE, None)
    assert words in found.reason


def behind(*layers, features):
    return nn.Sequential(nn.Conv2d(2, 12, 3, padding=1), *layers, nn.Flatten(), nn.Linear(features, 4))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: behind(nn.MaxPool2d(2), features=192), "'1' (MaxPool2d) keeps the largest values"),
        (lambda: behind(nn.GroupNorm(1, 12), features=768), "'1' (GroupNorm) is no layer that is solved"),
        (lambda: behind(nn.GELU(), features=768), "'1' (GELU) is no layer"),
        (
            lambda: behind(nn.Conv2d(12, 12, 3, padding=1, padding_mode="reflect"), features=768),
            "padding_mode='reflect' is not handled",
        ),
        (Residual, "'fc' is not what 'two' returned: a shortcut"),
        (lambda: Shortcut(1.0), "the gradient of conv.weight does not come through the layers behind it alone"),
        (lambda: nn.Sequential(nn.Conv2d(2, 4, 8), nn.Flatten()), "no Linear layer with a bias"),
        (lambda: tiny.convnet(SPEC, bottleneck=True), "through-bottleneck enters at its encoder"),
    ],
)
def test_what_does_not_fit_is_named(model, words):
    refused(run(LayerwiseInversion(), model()), words)


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
    refused(run(LayerwiseInversion(), model), "'0' runs or is used more than once")


def test_batches_are_refused_by_size_and_by_rank():
    model = behind(nn.Sigmoid(), features=768)
    pair = tiny.images(SPEC, 2)
    refused(run(LayerwiseInversion(), model, pair), "gradient of 2 images mixes")
    victim = tiny.victim(model, SPEC)
    seen = replace(tiny.observe(victim, pair, [1, 2]), batch_size=None)
    (found,) = LayerwiseInversion()(victim, [seen], generator=torch.Generator())
    refused(found, "has rank 2, one image gives rank 1")
    alone = replace(tiny.observe(victim, pair[:1], [1]), batch_size=None)
    (found,) = LayerwiseInversion()(victim, [alone], generator=torch.Generator())
    torch.testing.assert_close(found.inputs, pair[:1], rtol=0, atol=1e-7)


def test_a_gradient_of_zero_is_refused():
    model = behind(nn.Sigmoid(), features=768)
    victim = tiny.victim(model, SPEC)
    seen = tiny.observe(victim, tiny.images(SPEC, 1), [1])
    silent = replace(seen, update={name: torch.zeros_like(value) for name, value in seen.update.items()})
    (found,) = LayerwiseInversion()(victim, [silent], generator=torch.Generator())
    refused(found, "the gradient of 3.bias is zero everywhere")


def test_a_classifier_without_bias_needs_the_scale():
    model = nn.Sequential(nn.Conv2d(2, 12, 3), nn.Tanh(), nn.Flatten(), nn.Linear(432, 4, bias=False))
    protocol = Protocol(name="fedavg", local_steps=1)
    refused(run(LayerwiseInversion(), model, learning_rate=0.1, protocol=protocol), "learning rate was not announced")


def test_what_takes_too_much_memory_is_refused(monkeypatch):
    from attacker.attacks.closed_form import estimate

    monkeypatch.setattr(estimate, "default_budget", lambda device: 1000)
    refused(run(LayerwiseInversion(), behind(nn.Sigmoid(), features=768)), "more than the budget of")


def test_through_bottleneck_needs_one_with_a_fully_connected_encoder():
    model = behind(nn.Sigmoid(), features=768)
    refused(run(ThroughBottleneck(), model), "the model has no variational bottleneck")
    deep = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.Sigmoid(), nn.Conv2d(4, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 4)
    )
    defended = extend_conv(deep, torch.zeros(1, 2, 8, 8), latent=2)
    refused(run(ThroughBottleneck(), defended), "has an encoder that is not fully connected")
    refused(run(LayerwiseInversion(), defended), "adds noise that is not known")
