"""The one measure by which results of different attacks compete."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from attacker.attacks import Member, Outcome, Portfolio
from attacker.attacks.base import Reconstruction
from fl_precode import Protocol, VariationalBottleneck
from fl_precode.defences.on_gradients import Prune
from tests.attacker import tiny
from tests.attacker.local_clients import train
from tests.attacker.members import SPEC, Answers, error, measured, members, observations, portfolio, run, victim_of
from tests.oracles import loop_gradient


def test_results_that_cannot_be_replayed_or_measured_never_win():
    victim = victim_of(tiny.convnet)
    _, (observation,) = observations(victim)
    search = members("inverting-gradients:iterations=5")
    base = Reconstruction(
        inputs=tiny.images(SPEC, 1), labels=torch.tensor([0]), outcome=Outcome.ITERATION_LIMIT, iterations=1
    )
    for odd, words in (
        (
            replace(base, inputs=torch.zeros(1, 9, 2, 2)),
            "odd: ValueError: the attack 'answers': expected images",
        ),
        (replace(base, labels=None), ""),
        (replace(base, inputs=torch.full_like(base.inputs, torch.nan)), ""),
        (replace(base, inputs=None, outcome=Outcome.DIVERGED, reason="non-finite"), "odd: non-finite"),
    ):
        (one,) = run(
            Portfolio(members=(Member(method="odd", attack=Answers(result=odd)), *search)), victim, [observation]
        )
        assert one.method == search[0].method
        assert words in one.reason


def test_unequal_losses_are_measured_again():
    victim = victim_of(tiny.convnet)
    x, (observation,) = observations(victim)
    boast = Reconstruction(
        inputs=tiny.images(SPEC, 1, seed=9),
        labels=torch.tensor([0]),
        outcome=Outcome.CONVERGED,
        matching_loss=0.0,
        iterations=7,
        seconds=2.0,
    )
    modest = replace(boast, inputs=x[0], matching_loss=5.0, seconds=3.0)
    both = tuple(Member(method=name, attack=Answers(result=one)) for name, one in (("b", boast), ("m", modest)))
    for order in (both, both[::-1]):
        (one,) = run(Portfolio(members=order), victim, [observation])
        assert one.method == "m"
        assert one.matching_loss < 1e-12
        assert (one.iterations, one.seconds) == (14, 5.0)


def test_behind_a_bottleneck_whose_noise_is_recovered_an_analytic_image_is_confirmed():
    victim = victim_of(bottleneck=True)
    (x,), seen = observations(victim)
    (one,) = run(portfolio(), victim, seen)
    assert one.method == "first-layer"
    assert one.matching_loss < 1e-12
    assert error(one, x) < 1e-20


def test_behind_a_bottleneck_of_unknown_noise_the_analytic_image_is_taken_unconfirmed():
    victim = victim_of(bottleneck=True)
    x = tiny.images(SPEC, 1)
    protocol = Protocol(name="fedavg", local_steps=3, learning_rate=0.1, batch_size=1, batch_norm="buffers")
    several = train(victim, x, torch.tensor([0]), [[0]] * 3, protocol)  # fresh noise at every step
    (one,) = run(portfolio(), victim, [several])
    assert one.method == "first-layer"
    assert one.matching_loss is None
    assert error(one, x) < 1e-12


def test_behind_a_bottleneck_results_are_compared_at_the_recovered_noise():
    victim = victim_of(tiny.convnet, bottleneck=True)
    (x,), (observation,) = observations(victim)
    (one,) = run(portfolio(30), victim, [observation])
    noise = [torch.randn(1, 5, generator=torch.Generator().manual_seed(7), dtype=torch.float64)[None, None]]
    early = ["0.weight", "0.bias"]
    assert one.matching_loss == pytest.approx(measured(victim, observation, one, noise, early), rel=1e-9)
    assert one.iterations == 270
    # The luckiest of many draws does not count: an image from elsewhere that boasts of one loses against the truth.
    truth = Reconstruction(inputs=x, labels=torch.tensor([0]), outcome=Outcome.ITERATION_LIMIT, iterations=1)
    boast = replace(truth, inputs=tiny.images(SPEC, 1, seed=9), matching_loss=0.0)
    both = (Member(method="b", attack=Answers(result=boast)), Member(method="t", attack=Answers(result=truth)))
    (found,) = run(Portfolio(members=both), victim, [observation])
    assert (found.method, found.matching_loss < 1e-12) == ("t", True)


def test_behind_a_bottleneck_of_unknown_noise_all_results_are_averaged_over_the_same_draws():
    victim = victim_of(tiny.convnet, bottleneck=True)
    x = tiny.images(SPEC, 2)
    observation = tiny.observe(victim, x, [0, 1])
    truth = Reconstruction(inputs=x, labels=torch.tensor([0, 1]), outcome=Outcome.ITERATION_LIMIT, iterations=1)
    (one,) = run(Portfolio(members=(Member(method="t", attack=Answers(result=truth)),)), victim, [observation])
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(1, 16, 2, 5, generator=generator, dtype=torch.float64)]
    early = ["0.weight", "0.bias"]  # what is behind the bottleneck carries its noise
    every = [measured(victim, observation, one, [noise[0][:, r : r + 1]], early) for r in range(16)]
    assert one.matching_loss == pytest.approx(sum(every) / 16, rel=1e-9)


def test_of_a_pruned_update_only_what_was_kept_is_compared():
    victim = victim_of(tiny.convnet)
    (x,), (observation,) = observations(victim)
    pruned = Prune(share=0.8)(observation.update, generator=torch.Generator())
    truth = Reconstruction(inputs=x, labels=torch.tensor([0]), outcome=Outcome.ITERATION_LIMIT, iterations=1)
    member = Portfolio(members=(Member(method="t", attack=Answers(result=truth)),))
    for defence, least, most in ((None, 1e-4, 1.0), ("prune:share=0.8", 0.0, 1e-12), ("soteria", 0.0, 1e-12)):
        protocol = replace(observation.protocol, defence=defence)
        (one,) = run(member, victim, [replace(observation, update=pruned, protocol=protocol)])
        assert least <= one.matching_loss <= most


@pytest.mark.parametrize(
    ("defence", "trusted"),
    [
        (None, True),
        ("precode", True),
        ("precode+clip:max_norm=1", True),
        ("precode+ppp:std=0.1", False),
        ("a defence of our own: a strong one", True),
    ],
)
def test_a_formula_is_not_trusted_where_the_gradient_itself_was_changed(defence, trusted):
    victim = victim_of(bottleneck=True)
    x = tiny.images(SPEC, 2)
    observation = tiny.observe(victim, x, [0, 1])  # of several images the noise is not recovered
    protocol = replace(observation.protocol, defence=defence)
    truth = Reconstruction(inputs=x, labels=torch.tensor([0, 1]), outcome=Outcome.ITERATION_LIMIT, iterations=1)
    wrong = replace(truth, inputs=tiny.images(SPEC, 2, seed=9), outcome=Outcome.CONVERGED, iterations=0)
    both = (Member(method="formula", attack=Answers(result=wrong)), Member(method="t", attack=Answers(result=truth)))
    (one,) = run(Portfolio(members=both), victim, [replace(observation, protocol=protocol)])
    assert one.method == ("formula" if trusted else "t")


class Single(nn.Module):
    """Has a constant in float32 that is neither parameter nor buffer."""

    def __init__(self):
        super().__init__()
        self.net = tiny.convnet(SPEC)
        self.constant = torch.full((1, 36), 0.5)

    def forward(self, x):
        return self.net((x.flatten(1) @ self.constant.mT).reshape(-1, 1, 1, 1) * x + x)


def test_float32_updates_are_measured_in_float64_where_the_model_can():
    for model, most in ((tiny.convnet(SPEC), 1e-12), (Single(), 1e-7)):
        victim = tiny.victim(model, SPEC, dtype=torch.float32)
        x = tiny.images(SPEC, 1, dtype=torch.float32)
        truth = Reconstruction(inputs=x, labels=torch.tensor([1]), outcome=Outcome.ITERATION_LIMIT, iterations=1)
        found = Portfolio(members=(Member(method="t", attack=Answers(result=truth)),))
        (one,) = run(found, victim, [tiny.observe(victim, x, [1])])
        assert one.matching_loss < most
        assert one.inputs.dtype == torch.float32
    assert one.method == "t"


def test_a_bottleneck_without_layers_before_it_leaves_all_parameters():
    model = nn.Sequential(nn.Flatten(), VariationalBottleneck(36, latent=5), nn.Linear(36, 4))
    victim = tiny.victim(model, SPEC)
    x = tiny.images(SPEC, 2)
    observation = tiny.observe(victim, x, [0, 1])
    truth = Reconstruction(inputs=x, labels=torch.tensor([0, 1]), outcome=Outcome.ITERATION_LIMIT, iterations=1)
    (one,) = run(Portfolio(members=(Member(method="t", attack=Answers(result=truth)),)), victim, [observation])
    noise = torch.randn(1, 16, 2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    every = [measured(victim, observation, one, [noise[:, r : r + 1]]) for r in range(16)]
    assert one.matching_loss == pytest.approx(sum(every) / 16, rel=1e-9)


def test_several_announced_steps_are_unrolled():
    victim = victim_of(tiny.convnet)
    (x,), (gradient,) = observations(victim)
    weights, rate = dict(gradient.parameters), 0.5
    for _ in range(3):
        found = loop_gradient(victim, weights, x, torch.tensor([0]))
        weights = {name: value - rate * found[name].detach() for name, value in weights.items()}
    several = replace(
        gradient,
        update={name: value - gradient.parameters[name] for name, value in weights.items()},
        kind="weights",
        protocol=Protocol(name="fedavg", local_steps=3, learning_rate=rate),
    )
    truth = Reconstruction(inputs=x, labels=torch.tensor([0]), outcome=Outcome.ITERATION_LIMIT, iterations=1)
    whole = Portfolio(members=(Member(method="t", attack=Answers(result=truth)),))
    assert run(whole, victim, [several])[0].matching_loss < 1e-12
    silent = replace(several, protocol=Protocol(name="fedavg", local_steps=3))
    assert run(whole, victim, [silent])[0].matching_loss > 1e-9
