"""Where a client's noise comes from, and what epsilon is worth then."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fl_precode
from clients.app import client_noise
from clients.train import defended_gradient, defended_training
from fl_precode.defences.registry import gradient_defence
from fl_precode.federation.accounting import privacy_spent
from fl_precode.federation.config import Settings, SettingsError
from fl_precode.federation.federation import prepare

DP = "dp:max_norm=1,noise_multiplier=1"
SPECS = [DP, "noise:std=1", "laplace:std=1", "quantise:bits=4", "none", "ppp:std=1"]


def bottlenecked(dropout=False):
    torch.manual_seed(9)
    layers = [nn.Dropout(0.5)] if dropout else []
    plain = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.Tanh(), *layers, nn.Linear(8, 3))
    return plain if dropout else fl_precode.extend(plain, torch.zeros(2, 1, 2, 3), latent=4)


def sent(spec, *, seeded_noise, partition=0, steps=0, model=None):
    """What a client of seed 3 sends in round 1."""
    settings = Settings(seed=3, seeded_noise=seeded_noise)
    spec = f"precode+{spec}" if spec.startswith("ppp") else spec
    one = torch.linspace(-1, 1, 24).reshape(4, 1, 2, 3), torch.arange(4) % 3
    net = bottlenecked() if model is None else model
    with client_noise(settings, partition, 1) as generator:
        if steps:
            defended_training(net, [one] * steps, gradient_defence(spec), generator, learning_rate=0.1)
            found = dict(net.named_parameters())
        else:
            found, _ = defended_gradient(net, one, gradient_defence(spec), generator)
    return torch.cat([value.detach().flatten() for value in found.values()])


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("steps", [0, 2], ids=["gradient", "training"])
def test_two_runs_of_one_seed_differ_unless_the_run_asks_for_seeded_noise(spec, steps):
    first, second = (sent(spec, seeded_noise=False, steps=steps) for _ in range(2))
    assert not torch.allclose(first, second)
    same, too = (sent(spec, seeded_noise=True, steps=steps) for _ in range(2))
    assert torch.equal(same, too)
    assert not torch.allclose(same, sent(spec, seeded_noise=True, steps=steps, partition=1)), "each client its own"


def test_dropout_masks_do_not_come_from_the_seed_either():
    net = bottlenecked(dropout=True)
    first, second = (sent("none", seeded_noise=False, model=net) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(*(sent("none", seeded_noise=True, model=net) for _ in range(2)))


def test_epsilon_of_seeded_noise_is_null_and_says_why():
    settings = {"dataset": "digits", "model": "mlp", "defence": DP, "batch_size": 8}
    honest = privacy_spent(prepare(Settings(**settings)), 2)
    void = privacy_spent(prepare(Settings(**settings, seeded_noise=True)), 2)
    assert honest["epsilon"] > 0
    assert void["epsilon"] is None
    assert "drawn from the run configuration's seed" in void["note"]
    assert f"would have spent {honest['epsilon']:.3g}" in void["note"]
    assert void["steps"] == honest["steps"]


def test_the_run_configuration_takes_true_or_false():
    assert Settings.from_run_config({"seeded-noise": True}).seeded_noise
    assert not Settings.from_run_config({}).seeded_noise
    with pytest.raises(SettingsError, match="seeded-noise: expected true or false, got 1"):
        Settings.from_run_config({"seeded-noise": 1})
