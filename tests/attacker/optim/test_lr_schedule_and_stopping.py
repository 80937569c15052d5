"""Learning rates, Adam's direction, soft signs, Langevin noise and starts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from attacker.optim.adam import Adam
from attacker.optim.first_order import Descent, SoftSign
from attacker.optim.initialisation import start_named
from attacker.optim.lr_schedule import Schedule
from attacker.optim.random_streams import Draws
from tests.attacker import tiny
from tests.attacker.known_minima import Bowl


def start(victims: int = 2, restarts: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(victims, restarts, 1, 1, 2, 2, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ("step", [1, 1, 0.1, 0.1, 0.01, 1e-3]),
        ("constant", [1, 1, 1, 1, 1, 1]),
        ("linear", [1, 1 - 29 / 80, 1 - 30 / 80, 1 - 49 / 80, 1 - 50 / 80, 1 - 79 / 80]),
        ("cosine", [(1 + math.cos(math.pi * t / 80)) / 2 for t in (0, 29, 30, 49, 50, 79)]),
    ],
)
def test_schedules(shape, wanted):
    clock = torch.tensor([[0, 29, 30, 49, 50, 79]])
    schedule = Schedule(shape=shape, iterations=80)
    torch.testing.assert_close(schedule.share(clock), torch.tensor([wanted], dtype=torch.float64))
    ends = [30, 30, 50, 50, 70, 80] if shape == "step" else [80] * 6
    assert schedule.next_stage(clock).tolist() == [ends]
    warm = replace(schedule, warmup=4).share(torch.tensor([[0, 1, 3, 4]]))
    plain = schedule.share(torch.tensor([[0, 1, 3, 4]]))
    torch.testing.assert_close(warm, plain * torch.tensor([[0.25, 0.5, 1, 1]], dtype=torch.float64))


@pytest.mark.parametrize("shape", ["step", "constant", "linear", "cosine"])
def test_steps_follow_the_schedule(shape):
    bowl = Bowl()
    Descent(iterations=40, learning_rate=1e-3, schedule=shape, warmup=5).run(bowl, start(1, 1))
    steps = [float((b - a).abs().max()) for (a, _), (b, _) in zip(bowl.seen, bowl.seen[1:], strict=False)]
    # Far from the goal the sign never changes, so that Adam's direction is 1.
    shares = Schedule(shape=shape, iterations=40, warmup=5).share(torch.arange(40))
    torch.testing.assert_close(torch.tensor(steps, dtype=torch.float64), 1e-3 * shares, rtol=1e-5, atol=1e-12)


def test_adam_is_torchs():
    generator = torch.Generator().manual_seed(0)
    x = start().requires_grad_(True)
    peer = torch.optim.Adam([x], lr=0.1)
    ours, adam = x.detach().clone(), Adam(x)
    for _ in range(20):
        x.grad = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        peer.step()
        ours = ours - 0.1 * adam.direction(x.grad)
    torch.testing.assert_close(ours, x.detach(), rtol=0, atol=1e-12)


def test_soft_signs_go_from_the_sign_to_the_gradient():
    def candidates(**changed: object) -> torch.Tensor:
        descent = Descent(iterations=15, learning_rate=0.5, **changed)  # type: ignore[arg-type]
        return descent.run(Bowl(), start()).candidates

    hard, plain = candidates(signed=True), candidates(signed=False)
    torch.testing.assert_close(candidates(signed=SoftSign(1e-9)), hard)
    # tanh(g / s) is g / s, and Adam does not see the scale but for its epsilon.
    torch.testing.assert_close(candidates(signed=SoftSign(1e3)), plain, rtol=0, atol=1e-3)
    middle = candidates(signed=SoftSign(0.5))
    assert float((middle - hard).abs().max()) > 1e-2
    assert float((middle - plain).abs().max()) > 1e-2


def test_langevin_noise_is_a_multiple_of_the_rate():
    flat = torch.zeros(1, 2, 1, 1, 40, 40, dtype=torch.float64)

    def noise(seed: int, langevin: float = 0.2) -> torch.Tensor:
        draws = Draws.seeded(1, 2, torch.Generator().manual_seed(seed))
        bowl, quiet = Bowl(), Bowl()
        descent = Descent(iterations=2, learning_rate=0.05, schedule="constant")
        replace(descent, langevin=langevin).run(bowl, flat, draws=draws)
        descent.run(quiet, flat)
        return bowl.seen[1][0] - quiet.seen[1][0]

    assert float(noise(0).std()) == pytest.approx(0.2 * 0.05, rel=0.05)
    assert torch.equal(noise(0), noise(0))
    assert not torch.equal(noise(0), noise(1))
    with pytest.raises(ValueError, match="draws for the Langevin noise"):
        Descent(iterations=2, learning_rate=0.05, langevin=0.1).run(Bowl(), flat)


def first(name: str, *, seed: int = 0, side: int = 6) -> torch.Tensor:
    like = torch.zeros((), dtype=torch.float64)
    draws = Draws.seeded(2, 3, torch.Generator().manual_seed(seed))
    return start_named(name).candidates(tiny.inputs(channels=3, side=side), 2, draws=draws, like=like)


def test_starts():
    spec = tiny.inputs(channels=3, side=6)
    for name in ("normal", "uniform", "grey", "patterned-4"):
        assert first(name).shape == (2, 3, 2, 3, 6, 6)
        assert torch.equal(first(name), first(name))
    assert bool((first("grey") == 0).all())
    uniform = first("uniform", side=24)
    pixels = tiny.inputs(channels=3, side=24).denormalise(uniform)
    assert 0 <= float(pixels.min()) < 0.01 < 0.99 < float(pixels.max()) <= 1
    assert float(pixels.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(pixels.var()) == pytest.approx(1 / 12, rel=0.05)
    tiled = first("patterned-4")
    assert torch.equal(tiled[..., 4:, :], tiled[..., :2, :])
    assert torch.equal(tiled[..., :, 4:], tiled[..., :, :2])
    assert len(tiled[..., :4, :4].unique()) == 2 * 3 * 2 * 3 * 16
    assert first("patterned-9").shape[-2:] == spec.shape[-2:]


@pytest.mark.parametrize("name", ["white", "patterned", "patterned-0", "patterned-4.5", "patterned--1", ""])
def test_unknown_starts_say_what_exists(name):
    with pytest.raises(ValueError, match=r"normal, uniform, grey, patterned-N"):
        first(name)
