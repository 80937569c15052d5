"""Problems that first-layer inversion does not fit: each is named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from attacker.attacks import FirstLayerInversion, Outcome
from attacker.reasons import because
from attacker.victim import Victim
from fl_precode import Observation, Protocol
from tests.attacker import tiny
from tests.attacker.attacks.test_attacks_raise import MATCHING, SPEC, check_refused, run, victim_of


@pytest.mark.parametrize(
    ("model", "code"),
    [
        (tiny.convnet, "first-layer-not-linear"),
        (lambda spec: tiny.mlp(spec, bias=False), "first-layer-without-bias"),
        (
            lambda spec: nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(9, 4)),
            "first-layer-sees-no-image",
        ),
        (lambda spec: nn.Sequential(nn.Tanh(), tiny.mlp(spec)), "first-layer-sees-no-image"),
        (
            lambda spec: nn.Sequential(nn.Linear(6, 6), nn.Flatten(), nn.Linear(36, 4)),
            "first-layer-sees-no-image",
        ),
    ],
)
def test_first_layer_names_the_layer_that_does_not_fit(model, code):
    victim = victim_of(model)
    check_refused(run(FirstLayerInversion(), victim, tiny.observe(victim, tiny.images(SPEC, 1), [1])), code)


def test_first_layer_needs_parameters():
    victim = Victim(model=nn.Flatten(), inputs=tiny.inputs(side=2))
    nothing = Observation(
        parameters={}, buffers={}, update={}, kind="gradient", batch_size=1, protocol=Protocol(), round=1, node="1"
    )
    check_refused(run(FirstLayerInversion(), victim, nothing), "no-parameters")
    check_refused(run(MATCHING, victim, nothing), "no-parameters")


def test_first_layer_refuses_batches_and_names_the_rank():
    victim = victim_of()
    pair = tiny.observe(victim, tiny.images(SPEC, 2), [1, 2])
    check_refused(run(FirstLayerInversion(), victim, pair), because("several-images.first-layer", size=2))
    rank = because("several-images.rank", name="1.weight", rank=2)
    check_refused(run(FirstLayerInversion(), victim, replace(pair, batch_size=None)), rank)
    many = tiny.observe(victim, tiny.images(SPEC, 10), [0, 1, 2, 3] * 2 + [1, 2], batch_size=None)
    check_refused(
        run(FirstLayerInversion(), victim, many), because("several-images.rank", name="1.weight", rank="8 or more")
    )


def test_a_dead_first_layer_is_named():
    spec = SPEC
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 4))
    with torch.no_grad():
        model[1].bias.fill_(-1e3)
    victim = tiny.victim(model, spec)
    observation = tiny.observe(victim, tiny.images(spec, 1), [1])
    still = because("first-layer-did-not-move", what="weight and the bias", name="1")
    check_refused(run(FirstLayerInversion(), victim, observation), still)


def test_a_quotient_that_overflows_is_divergence():
    victim = victim_of()
    good = tiny.observe(victim, tiny.images(SPEC, 1), [1])
    tiny_bias = {**good.update, "1.bias": good.update["1.bias"] * 1e-320, "1.weight": good.update["1.weight"] * 1e10}
    found = run(FirstLayerInversion(), victim, replace(good, update=tiny_bias))
    assert found.outcome is Outcome.DIVERGED
    assert found.inputs is None
