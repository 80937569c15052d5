"""Noise that nobody can draw again."""

from __future__ import annotations

import contextvars
import math

import pytest
import torch
from scipy import stats
from torch import nn
from torch.utils.checkpoint import checkpoint

import fl_precode
from fl_precode.defences.registry import gradient_defence
from fl_precode.randomness.entropy import system_generator, system_normal, system_uniform, unforeseeable
from fl_precode.randomness.seeding import seeded

GRADIENT = {"weight": torch.linspace(-1, 1, 400).reshape(20, 20)}


def unasked(call, *arguments, **named):
    """Without the request for seeded noise that this suite makes for its tests."""
    return contextvars.Context().run(lambda: call(*arguments, **named))


def guarded(**settings):
    return fl_precode.extend(
        nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.Linear(8, 3)), torch.zeros(2, 6), **settings
    )


def test_system_numbers_have_the_distribution_that_they_say():
    uniform, normal = system_uniform((200, 500)), system_normal((200, 500))
    assert uniform.shape == normal.shape == (200, 500)
    assert 0 < uniform.min() < 1e-3
    assert 0.999 < uniform.max() < 1
    assert stats.kstest(uniform.flatten().numpy(), "uniform").pvalue > 1e-6
    assert stats.kstest(normal.flatten().numpy(), "norm").pvalue > 1e-6


def test_a_system_generator_is_normal_and_no_seed_gives_it_again():
    torch.manual_seed(0)
    first = torch.randn(100_000, generator=system_generator())
    torch.manual_seed(0)
    second = torch.randn(100_000, generator=system_generator())
    assert stats.kstest(first.numpy(), "norm").pvalue > 1e-6
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 6 / math.sqrt(100_000)


def test_a_generator_of_torch_keeps_32_bits_of_its_seed():
    """The reason why no seed of a generator is enough; when torch changes this, entropy.py may become simpler."""
    low, high = (torch.Generator().manual_seed(seed) for seed in (7, 7 + 2**32))
    assert torch.equal(torch.randn(50, generator=low), torch.randn(50, generator=high))


@pytest.mark.parametrize("spec", ["noise:std=1", "laplace:std=1", "quantise:bits=3"])
def test_without_a_generator_the_seed_of_torch_says_nothing_of_a_defence(spec):
    defence = gradient_defence(spec)
    with seeded(3):
        first = defence(GRADIENT)["weight"]
    with seeded(3):
        second = defence(GRADIENT)["weight"]
    assert not torch.equal(first, second)
    again = [defence(GRADIENT, generator=torch.Generator().manual_seed(3))["weight"] for _ in range(2)]
    assert torch.equal(*again), "a test that asks for a seed gets it"


@pytest.mark.parametrize("std", [0.5, 3.0])
@pytest.mark.parametrize(("name", "kind"), [("noise", stats.norm), ("laplace", stats.laplace)])
def test_noise_from_the_system_has_its_size(name, kind, std):
    zeros = {"weight": torch.zeros(60_000)}
    drawn = gradient_defence(f"{name}:std={std}")(zeros)["weight"].double().numpy()
    scale = std if name == "noise" else std / math.sqrt(2)
    assert stats.kstest(drawn / scale, kind.cdf).pvalue > 1e-6


def test_an_app_that_seeds_torch_does_not_give_the_bottleneck_away():
    """``torch.manual_seed(42)`` stands in most apps, and the server has the app."""
    model, image = guarded(latent=4), torch.ones(2, 6)

    def run():
        torch.manual_seed(42)
        return model(image)

    assert not torch.equal(unasked(run), unasked(run))
    with fl_precode.sample_noise():
        assert torch.equal(run(), run())


def test_under_vmap_each_example_has_its_own_noise():
    bottleneck = fl_precode.VariationalBottleneck(3, latent=4)
    mapped = torch.func.vmap(lambda one: bottleneck(one.unsqueeze(0)), randomness="different")
    out = unasked(mapped, torch.ones(5, 3)).squeeze(1)
    assert len(torch.unique(out, dim=0)) == 5


def test_a_checkpoint_that_would_draw_other_noise_is_refused_and_told_what_to_do():
    model, image = guarded(latent=4), torch.ones(2, 6)

    def backward():
        checkpoint(model, image, use_reentrant=False).sum().backward()

    with pytest.raises(RuntimeError, match="open fl_precode.sample_noise"):
        unasked(backward)
    with fl_precode.sample_noise():
        backward()


def test_what_torch_draws_by_itself_is_unforeseeable_in_the_block_and_as_before_after_it():
    def run():
        torch.manual_seed(1)
        with unforeseeable():
            inside = torch.rand(20)
        return inside, torch.rand(20)

    (first, after), (second, after_too) = run(), run()
    assert not torch.equal(first, second)
    assert torch.equal(after, after_too)
