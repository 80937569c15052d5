"""PRECODE's features and noise for batches: exact for smooth and other activations, and what does not fit is named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from attacker.analytic.bottleneck_batches import bottleneck_gradient, features_of_batch, mixing_gram
from attacker.gradients.trace import trace
from fl_precode import Protocol, VariationalBottleneck, sample_noise
from tests.attacker import tiny

SPEC = tiny.inputs(side=8, classes=10)
FEATURES, LATENT = 40, 48


def model(*, activation=None, beta=1e-3, behind=()):
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, FEATURES),
        activation or nn.Sigmoid(),
        VariationalBottleneck(FEATURES, latent=LATENT, beta=beta),
        *behind,
        nn.Linear(FEATURES, SPEC.classes),
    )


def taken(batch, *, learning_rate=None, seed=0, **changes):
    """A victim, what entered its bottleneck, the noise, and the update."""
    torch.manual_seed(seed)
    victim = tiny.victim(model(**changes), SPEC)
    x, y = tiny.images(SPEC, batch, seed=seed), [(i // 2) % SPEC.classes for i in range(batch)]  # labels repeat
    with torch.no_grad():
        features = victim.model[:3](x)
    noise = torch.randn(batch, LATENT, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    observation = tiny.observe(victim, x, y, learning_rate=learning_rate)  # draws the same noise
    with sample_noise(generator=torch.Generator().manual_seed(7)), torch.no_grad():
        drawn = victim.model(x)
    with sample_noise(values=[noise]), torch.no_grad():
        assert torch.equal(drawn, victim.model(x))
    return victim, features, noise, observation


def solve(victim, observation, *, starts=64, steps=60):
    seen = bottleneck_gradient(trace(victim), observation)
    assert not isinstance(seen, str), seen
    return seen, features_of_batch(seen, torch.Generator().manual_seed(0), starts=starts, steps=steps)


@pytest.mark.parametrize("activation", [nn.Sigmoid(), nn.ReLU(), nn.Tanh()], ids=str)
@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_features_and_noise_are_exact(activation, batch):
    victim, features, noise, observation = taken(batch, activation=activation)
    for seen in (observation, replace(observation, batch_size=None)):
        _, found = solve(victim, seen)
        assert not isinstance(found, str), found
        order = torch.cdist(features, found.features).argmin(dim=1)
        assert sorted(order.tolist()) == list(range(batch))
        assert float((found.features[order] - features).abs().max()) < 1e-6
        assert float((found.noise[order] - noise).abs().max()) < 1e-4
        assert found.residual < 1e-6


def test_the_gram_matrix_is_that_of_the_mixing():
    victim, features, _, observation = taken(4, learning_rate=0.1)
    seen, found = solve(victim, observation)
    mixing = torch.linalg.inv(torch.linalg.lstsq(seen.factors.right.T, features.T).solution.T)
    gram, ones = mixing_gram(seen)
    assert torch.allclose(gram, mixing @ mixing.T, rtol=1e-6, atol=1e-8 * float(gram.abs().max()))
    assert torch.allclose(ones, mixing.sum(dim=1), rtol=1e-6, atol=1e-8 * float(ones.abs().max()))
    assert torch.allclose(found.deltas.T @ found.features, seen.factors.left @ seen.factors.right, atol=1e-10)


def test_starts_and_steps_are_used():
    victim, _, _, observation = taken(5)
    _, short = solve(victim, observation, starts=1, steps=1)
    assert short.code == "mixing-not-solved"


@pytest.mark.parametrize(
    ("changes", "edits", "codes"),
    [
        ({"beta": 0.0}, {}, ["bottleneck-without-kl"]),
        ({"behind": (nn.Linear(FEATURES, FEATURES),)}, {}, ["bottleneck-not-last"]),
        ({}, {"batch_size": 2}, ["rank-too-high"]),
        ({}, {"kind": "weights", "protocol": Protocol(local_steps=4)}, ["scale-needed", "several-steps"]),
        ({}, {"kind": "weights", "protocol": Protocol(local_steps=1)}, ["scale-needed", "learning-rate-unknown"]),
    ],
)
def test_what_does_not_fit_is_named(changes, edits, codes):
    victim, _, _, observation = taken(3, **changes)
    found = bottleneck_gradient(trace(victim), replace(observation, **edits))
    assert list(found.codes) == codes


def test_models_without_the_bottleneck_and_batches_of_many_are_named():
    bare = tiny.victim(tiny.mlp(SPEC), SPEC)
    found = bottleneck_gradient(trace(bare), tiny.observe(bare, tiny.images(SPEC, 2), [1, 2]))
    assert found.code == "bottleneck-not-one"
    victim, _, _, observation = taken(10)
    assert bottleneck_gradient(trace(victim), observation).code == "too-many-images"


def test_an_update_of_another_loss_is_noticed():
    victim, _, _, observation = taken(3)
    name = "3.encoder.bias"
    moved = {**observation.update, name: observation.update[name] * 3}
    _, found = solve(victim, replace(observation, update=moved), starts=4)
    assert isinstance(found, str)
