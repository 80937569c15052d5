"""Priors against slow versions, and what the objective does with them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from attacker.gradients.distances import cosine_distance, total_variation
from attacker.gradients.double_backward import LoopProducts
from attacker.gradients.one_step import gradient_products
from attacker.gradients.replay import Replay
from attacker.gradients.trace import trace
from attacker.objectives.bn_statistics_prior import BatchStatistics, why_no_batch_statistics
from attacker.objectives.image_priors import GroupConsistency, ImageNorm, TotalVariation, shifted_to_fit
from attacker.objectives.objective import BottleneckNoise, GradientObjective
from attacker.optim.random_streams import Draws
from attacker.reasons import because
from fl_precode import VariationalBottleneck
from tests.attacker import tiny

SPEC = tiny.inputs(channels=2, side=5)


def random_images(victims: int = 3, restarts: int = 4, batch: int = 2, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(victims, restarts, batch, *SPEC.shape, generator=generator, dtype=torch.float64)


def test_image_norm_is_the_mean_square():
    x = random_images()
    for v in range(3):
        for r in range(4):
            assert float(ImageNorm()(x)[v, r]) == pytest.approx(float((x[v, r] ** 2).mean()))
    assert torch.equal(TotalVariation()(x), total_variation(x))


def test_group_consistency_is_the_distance_to_the_mean_of_the_restarts():
    x = random_images().requires_grad_(True)
    found = GroupConsistency(registered=False)(x)
    with torch.no_grad():
        for v in range(3):
            mean = torch.stack(list(x[v])).mean(dim=0)
            for r in range(4):
                assert float(found[v, r]) == pytest.approx(float(((x[v, r] - mean) ** 2).mean()))
    (gradient,) = torch.autograd.grad(found.sum(), x)
    # The mean is a constant for the gradient.
    wanted = 2 * (x - x.mean(dim=1, keepdim=True)).detach() / x[0, 0].numel()
    torch.testing.assert_close(gradient, wanted)


def slow_shift(image: Tensor, goal: Tensor) -> Tensor:
    """The move around the edges that comes closest, by trying all."""
    moves = [image.roll((i, j), dims=(-2, -1)) for i in range(image.shape[-2]) for j in range(image.shape[-1])]
    return min(moves, key=lambda moved: float((moved - goal).square().sum()))


@pytest.mark.parametrize("sides", [(5, 5), (4, 6), (1, 7)])
def test_shifts_are_the_best_of_all(sides):
    generator = torch.Generator().manual_seed(0)
    goal = torch.randn(2, 1, 3, 2, *sides, generator=generator, dtype=torch.float64)
    images = torch.randn(2, 4, 3, 2, *sides, generator=generator, dtype=torch.float64)
    moved = shifted_to_fit(images, goal)
    for v, r, b in torch.cartesian_prod(torch.arange(2), torch.arange(4), torch.arange(3)).tolist():
        torch.testing.assert_close(moved[v, r, b], slow_shift(images[v, r, b], goal[v, 0, b]))


def test_registration_finds_shifted_copies_where_the_mean_blurs_them():
    image = random_images(1, 1, 1)[0, 0, 0]
    copies = torch.stack([image, image, image, image.roll((1, 2), dims=(-2, -1))])[None, :, None]
    registered, plain = GroupConsistency(registered=True)(copies), GroupConsistency(registered=False)(copies)
    torch.testing.assert_close(registered[0, :3], torch.zeros(3, dtype=torch.float64))
    assert float(plain[0, :3].min()) > 0.01


@pytest.mark.parametrize("registered", [False, True])
def test_restarts_that_are_not_finite_have_no_say(registered):
    x = random_images()
    x[1, 2] = torch.nan
    prior = GroupConsistency(registered=registered)
    found, others = prior(x), prior(x[:, [0, 1, 3]])
    torch.testing.assert_close(found[1, [0, 1, 3]], others[1])
    assert bool(found[1, 2].isnan())
    torch.testing.assert_close(found[0], prior(random_images())[0])


class Normalised(nn.Module):
    """Two BatchNorm layers, one behind a bottleneck, one overwriting what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.first = nn.BatchNorm2d(3)
        self.bottleneck = VariationalBottleneck(27, latent=4)
        self.second = nn.BatchNorm1d(27, affine=False)
        self.head = nn.Linear(27, 4)
        for layer in (self.first, self.second):
            generator = torch.Generator().manual_seed(5)
            layer.running_mean.normal_(generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)

    def statistics(self, x: Tensor) -> list[Tensor]:
        return [self.conv(x), self.body(x)]

    def body(self, x: Tensor) -> Tensor:
        h = self.first(self.conv(x)).relu().flatten(1)
        mean, _ = self.bottleneck.encoder(h).chunk(2, dim=1)
        return self.bottleneck.decoder(mean)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bottleneck(self.first(self.conv(x)).relu_().flatten(1))
        return self.head(self.second(h).relu_())


def replay_of(seed: int = 0) -> tuple[Normalised, Replay]:
    torch.manual_seed(seed)
    model = Normalised().double().eval()
    victim = tiny.victim(model, SPEC)
    parameters = {name: value.detach().clone() for name, value in model.named_parameters()}
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    return model, Replay(victim, parameters, buffers)


def slow_statistics(model: Normalised, x: Tensor) -> float:
    total = 0.0
    with torch.no_grad():
        for layer, values in zip((model.first, model.second), model.statistics(x), strict=True):
            channels = values.transpose(0, 1).flatten(1)
            for found, wanted in (
                (channels.mean(1), layer.running_mean),
                (channels.var(1, correction=0), layer.running_var),
            ):
                total += float((found - wanted).norm())
    return total


def test_batch_statistics_are_those_of_each_candidate_at_each_layer():
    x = random_images()
    pairs = [replay_of(0), replay_of(1)]
    order = [0, 0, 1]
    prior = BatchStatistics([pairs[index][1] for index in order], latents=((4,),))
    state = torch.get_rng_state()
    found = prior(x)
    assert torch.equal(state, torch.get_rng_state())
    for v, index in enumerate(order):
        for r in range(4):
            assert float(found[v, r]) == pytest.approx(slow_statistics(pairs[index][0], x[v, r]), rel=1e-10)
    torch.testing.assert_close(prior.keep([2, 0], [[0], [0]])(x[[2, 0]]), found[[2, 0]])
    x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(prior(x).sum(), x)
    assert bool((gradient.flatten(2).norm(dim=2) > 0).all())


def test_running_statistics_come_from_the_observation_and_not_from_the_model():
    x = random_images(1)
    model, replay = replay_of()
    before = BatchStatistics([replay], latents=((4,),))(x)
    model.first.running_mean.fill_(100.0)
    torch.testing.assert_close(BatchStatistics([replay], latents=((4,),))(x), before)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_what_the_prior_needs_is_named():
    model, replay = replay_of()
    assert why_no_batch_statistics(model, replay.buffers) is None
    assert why_no_batch_statistics(tiny.mlp(SPEC), {}) == because("statistics-missing")
    untracked = nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), tiny.mlp(SPEC))
    assert why_no_batch_statistics(untracked, {}) == because("statistics-missing")
    unsent = because("statistics-missing.not-sent", names=["first", "second"])
    assert why_no_batch_statistics(model, {}) == unsent


@pytest.mark.parametrize("fixed", [False, True])
def test_an_objective_for_some_candidates_says_the_same_of_them(fixed):
    _, replay = replay_of()
    x, labels = random_images(), torch.tensor([[[0, 1]], [[2, 3]], [[1, 1]]])
    with torch.no_grad():
        truths = [tiny.images(SPEC, 2, seed=index) for index in range(3)]
    targets = [
        tiny.observe(replay.victim, truth, row[0].tolist()).update for truth, row in zip(truths, labels, strict=True)
    ]
    victims, restarts = [2, 0], [[3, 1], [0, 2]]

    def objective(products) -> GradientObjective:
        noise = BottleneckNoise(draws=Draws.seeded(3, 4, torch.Generator().manual_seed(3)), batch=2, latents=((4,),))
        return GradientObjective(
            products=products,
            measure=cosine_distance,
            labels=labels,
            noise=noise.drawn_once(x) if fixed else noise,
            weighted_priors=[
                (0.5, TotalVariation()),
                (0.1, BatchStatistics([replay] * 3, latents=((4,),))),
            ],
        )

    seen = trace(replay.victim)
    fast = gradient_products(replay, targets, seen, batch_size=2)
    whole = objective(fast)
    distances, priors = whole.distances(x), whole.priors(x)
    torch.testing.assert_close(distances, objective(LoopProducts(replay, targets)).distances(x), rtol=0, atol=1e-8)
    part = objective(fast).keep(victims, restarts)
    some = torch.stack([x[v, r] for v, r in zip(victims, restarts, strict=True)])
    wanted = [
        torch.stack([values[v, r] for v, r in zip(victims, restarts, strict=True)]) for values in (distances, priors)
    ]
    torch.testing.assert_close(part.distances(some), wanted[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(part.priors(some), wanted[1], rtol=0, atol=1e-12)
    wide = replace(objective(fast), labels=labels.expand(3, 4, 2)).keep(victims, restarts)
    torch.testing.assert_close(wide.distances(some), wanted[0], rtol=0, atol=1e-12)
