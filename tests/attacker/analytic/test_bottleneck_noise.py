"""The noise and the features of a bottleneck, in closed form from a gradient: exact, or refused with the reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attacker.analytic.rank import numerical_rank
from attacker.attacks import recover_noise
from attacker.reasons import because
from attacker.victim import Victim
from fl_precode import Protocol, VariationalBottleneck
from tests.attacker import tiny
from tests.attacker.bottlenecked import SPEC, both_kinds, client, convolutional, normal, spread, two_bottlenecks
from tests.attacker.local_clients import train
from tests.attacker.members import victim_of

X = tiny.images(SPEC, 1)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    hidden=st.integers(1, 9),
    latent=st.integers(1, 7),
    beta=st.sampled_from([0.0, 1e-3, 0.5]),
    activation=st.sampled_from([nn.Sigmoid(), nn.LeakyReLU(0.1), nn.Tanh()]),
)
def test_features_and_noise_are_exact_in_float64(seed, hidden, latent, beta, activation):
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(36, hidden),
        activation,
        VariationalBottleneck(hidden, latent, beta),
        nn.Linear(hidden, 4),
    )
    victim = Victim(model=spread(model, seed), inputs=SPEC)
    eps = normal(1, latent, seed=seed)
    (one,) = recover_noise(victim, client(victim, X, [seed % 4], [eps])).bottlenecks
    h = victim.model[:3](X)
    assert torch.allclose(one.features, h, rtol=0, atol=1e-9)
    assert float((one.noise - eps).square().mean()) < 1e-15
    assert one.residual < 1e-10
    assert one.name == "3"


def test_every_bottleneck_of_a_model_is_recovered():
    victim = two_bottlenecks()
    noise = [normal(1, 6), normal(1, 4, seed=6)]
    found = recover_noise(victim, client(victim, X, [2], noise))
    assert found.complete
    for one, eps in zip(found.noise, noise, strict=True):
        assert torch.allclose(one, eps, rtol=0, atol=1e-9)


def test_a_float32_update_and_one_step_of_training_suffice():
    victim = victim_of(tiny.convnet, bottleneck=True)
    eps = normal(1, 5)
    seen = client(victim, X, [1], [eps])
    single = Victim(model=tiny.convnet(SPEC, bottleneck=True), inputs=SPEC)
    single.model.load_state_dict(victim.model.state_dict())
    low = client(single, X.float(), [1], [eps.float()])
    assert torch.allclose(recover_noise(single, low).noise[0], eps, rtol=0, atol=1e-4)
    rate = 0.2
    step = replace(
        seen,
        update={name: -rate * value for name, value in seen.update.items()},
        kind="weights",
        protocol=Protocol(name="fedavg", local_steps=1),  # the rate cancels
    )
    assert torch.allclose(recover_noise(victim, step).noise[0], eps, rtol=0, atol=1e-9)


def without_bias(part: str, *, behind: nn.Module | None = None) -> Victim:
    bottleneck = VariationalBottleneck(9, latent=4)
    old = getattr(bottleneck, part)
    setattr(bottleneck, part, nn.Linear(old.in_features, old.out_features, bias=False))
    tail = [behind] if behind is not None else []
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 9), nn.Tanh(), bottleneck, *tail, nn.Linear(9, 4))
    return Victim(model=spread(model), inputs=SPEC)


def test_without_a_bias_the_sample_follows_from_the_bias_of_the_classifier():
    victim, eps = without_bias("decoder"), normal(1, 4)
    found = recover_noise(victim, client(victim, X, [3], [eps]))
    assert torch.allclose(found.noise[0], eps, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("victim", "shapes", "code"),
    [
        (without_bias("encoder"), [(1, 4)], "bottleneck-without-bias"),
        (without_bias("decoder", behind=nn.Tanh()), [(1, 4)], "bottleneck-without-bias"),
        (convolutional(), [(1, 3, 4, 4)], "bottleneck-is-convolutional"),
    ],
    ids=["encoder without bias", "no classifier behind", "convolutional"],
)
def test_what_cannot_be_derived_is_refused(victim, shapes, code):
    found = recover_noise(victim, client(victim, X, [3], [normal(*shape) for shape in shapes]))
    assert found.bottlenecks == (None,)
    assert found.reasons[0].code == code


def test_of_two_kinds_the_one_that_can_be_is_recovered():
    victim = both_kinds()
    noise = [normal(1, 3, 4, 4), normal(1, 5, seed=6)]
    found = recover_noise(victim, client(victim, X, [2], noise))
    assert not found.complete
    assert found.noise[0] is None
    assert torch.allclose(found.noise[1], noise[1], rtol=0, atol=1e-9)


def of_rank(rank):
    return because("several-images.bottleneck-rank", name="3.encoder.weight", rank=rank)


def test_more_images_steps_and_noise_are_named_by_rank():
    victim = victim_of(tiny.convnet, bottleneck=True)
    pair = client(victim, tiny.images(SPEC, 2), [0, 1], [normal(2, 5)])
    assert recover_noise(victim, pair).reasons[0] == because("several-images.bottleneck", size=2)
    unknown = replace(pair, batch_size=None)
    assert recover_noise(victim, unknown).reasons[0] == of_rank(2)
    protocol = Protocol(name="fedavg", local_steps=3, learning_rate=0.5, batch_size=1, batch_norm="buffers")
    several = train(victim, X, torch.tensor([0]), [[0]] * 3, protocol)
    assert recover_noise(victim, several).reasons[0] == because("several-steps", steps=3)
    silent = replace(several, protocol=Protocol(name="fedavg"))
    assert recover_noise(victim, silent).reasons[0].code == "several-images"
    seen = client(victim, X, [0], [normal(1, 5)])
    noisy = replace(seen, update={name: g + 0.01 * torch.randn_like(g) for name, g in seen.update.items()})
    assert recover_noise(victim, noisy).reasons[0] == of_rank("8 or more")
    dead = replace(seen, update={name: torch.zeros_like(g) for name, g in seen.update.items()})
    assert recover_noise(victim, dead).reasons[0].code == "gradient-is-zero"
    plain = victim_of(tiny.convnet)
    assert recover_noise(plain, tiny.observe(plain, X, [0])).bottlenecks == ()


def test_rank_is_that_of_the_matrix():
    for rank in (1, 2, 5):
        matrix = normal(30, rank) @ normal(rank, 20, seed=9)
        assert numerical_rank(matrix) == rank
