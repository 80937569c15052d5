"""DP-SGD by Opacus against a slow loop, and its epsilon against the formula of the plain Gaussian mechanism."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fl_precode import extend, extend_conv, sample_noise
from fl_precode.defences.dp_sgd import DpSgd, dp_epsilon, per_example_gradients
from fl_precode.defences.ppp import fresh_seed
from fl_precode.objective import training_loss
from fl_precode.randomness.seeding import seeded
from tests.fl_precode.architectures import ARCHITECTURES
from tests.fl_precode.small_models import Model, lin


def seeded_generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(n=5):
    return torch.randn(n, 1, 8, 8, generator=seeded_generator(8)).double(), torch.arange(n) % 3


def small():
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, 3)
    ).double()


MODELS = {
    "plain": small,
    "precode": lambda: extend(small(), batch()[0], latent=4, beta=0.5),
    "cvb": lambda: extend_conv(small(), batch()[0], before="2", kernel=3, beta=0.5),
}


def slowly_clipped(model, examples, max_norm, noise):
    """Mean of the clipped gradients of single images; ``noise`` are the bottleneck's draws for the whole batch."""
    model.train()
    named = dict(model.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in named.items()}
    norms = []
    for i, (x, y) in enumerate(zip(*examples, strict=True)):
        with sample_noise(values=[value[i : i + 1] for value in noise]):
            loss = training_loss(model, x[None], y[None])
        each = torch.autograd.grad(loss, list(named.values()))
        norms.append(torch.sqrt(sum((g**2).sum() for g in each)).item())
        for name, g in zip(named, each, strict=True):
            total[name] += g * min(1.0, max_norm / norms[-1])
    return {name: value / len(examples[1]) for name, value in total.items()}, norms


@pytest.mark.parametrize("name", MODELS)
def test_clipping_each_example_equals_a_slow_loop(name):
    model, examples, max_norm = MODELS[name](), batch(), 0.0
    shape = {"plain": None, "precode": (4,), "cvb": (8, 6, 6)}[name]
    with seeded(fresh_seed(seeded_generator(2))):  # the very draws that the defence's own forward passes make
        noise = [] if shape is None else [torch.randn(5, *shape, dtype=torch.float64)]
    _, norms = slowly_clipped(model, examples, 1.0, noise)
    max_norm = sorted(norms)[2]
    expected, _ = slowly_clipped(model, examples, max_norm, noise)
    zeros = {key: torch.zeros_like(p) for key, p in model.named_parameters()}
    found = DpSgd(max_norm=max_norm, noise_multiplier=0.0)(
        zeros, model=model, batch=examples, generator=seeded_generator(2)
    )
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert (found[key] - value).abs().max() < 1e-10, key
    unclipped, _ = slowly_clipped(model, examples, 1e9, noise)
    assert any((found[key] - unclipped[key]).abs().max() > 1e-3 for key in expected), "something was clipped"


def test_noise_has_the_scale_sigma_c_over_b():
    model, examples = small(), batch(4)
    zeros = {key: torch.zeros_like(p) for key, p in model.named_parameters()}
    runs = [
        DpSgd(max_norm=0.5, noise_multiplier=sigma)(zeros, model=model, batch=examples, generator=seeded_generator(2))
        for sigma in (0.0, 3.0)
    ]
    added = torch.cat([(runs[1][key] - runs[0][key]).flatten() for key in zeros])
    n = len(added)
    assert abs(added.mean()) < 5 * 0.375 / math.sqrt(n)
    assert added.std().item() == pytest.approx(3.0 * 0.5 / 4, rel=5 / math.sqrt(2 * n))
    other = DpSgd(max_norm=0.5, noise_multiplier=3.0)(zeros, model=model, batch=examples, generator=seeded_generator(3))
    assert not torch.equal(other["0.weight"], runs[1]["0.weight"])


def test_the_client_is_left_as_it_was():
    model, examples = MODELS["precode"](), batch()
    before, state = torch.random.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    model.eval()
    zeros = {key: torch.zeros_like(p) for key, p in model.named_parameters()}
    DpSgd(max_norm=1.0, noise_multiplier=1.0)(zeros, model=model, batch=examples, generator=seeded_generator())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(module.training or module._forward_hooks or module._backward_hooks for module in model.modules())
    assert all(p.grad is None and not hasattr(p, "grad_sample") for p in model.parameters())


def test_every_parameter_gets_noise_even_one_that_the_loss_does_not_touch():
    model = Model(lambda m, x: m.body(x.flatten(1)), body=lin(64, 3), spare=lin(2, 2)).double()
    zeros = {key: torch.zeros_like(p) for key, p in model.named_parameters()}
    out = DpSgd(max_norm=1.0, noise_multiplier=1.0)(zeros, model=model, batch=batch(), generator=seeded_generator())
    assert out["spare.weight"].all()
    assert out["body.weight"].all()


def one_by_one(model, examples):
    named = dict(model.train().named_parameters())
    rows = [
        torch.autograd.grad(training_loss(model, x[None], y[None]), list(named.values()))
        for x, y in zip(*examples, strict=True)
    ]
    return {name: torch.stack(values) for name, values in zip(named, zip(*rows, strict=True), strict=True)}


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.memory, self.head = nn.GRU(8, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.memory(x.flatten(1, 2))[0][:, -1])


def colourful(build):
    return lambda: nn.Sequential(nn.Conv2d(1, 3, 1), nn.Upsample(32), build())


@pytest.mark.parametrize(
    "build",
    [
        small,
        Recurrent,  # vmap cannot batch it
        lambda: Model(lambda m, x: F.linear(x.flatten(1), m.body.weight), body=nn.Linear(64, 3, bias=False)),
        lambda: Model(lambda m, x: m.body(m.body(x.flatten(1))), body=lin(64, 64)),
        colourful(ARCHITECTURES["resnet18-group-norm"]),  # additions and activations in place
        colourful(ARCHITECTURES["vit"]),
    ],
)
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_gradients_of_single_examples_equal_those_of_a_loop(build, form):
    torch.manual_seed(1)
    model, (x, y) = build().double(), batch(3)
    found = per_example_gradients(model, x.expand(-1, 1, -1, -1).contiguous(memory_format=form), y)
    for name, value in one_by_one(model, (x, y)).items():
        torch.testing.assert_close(found[name], value, rtol=1e-8, atol=1e-10)


def test_many_examples_are_worked_off_in_pieces():
    model, examples = small(), batch(37)
    zeros = {key: torch.zeros_like(p) for key, p in model.named_parameters()}
    found = DpSgd(max_norm=0.5, noise_multiplier=0.0)(zeros, model=model, batch=examples, generator=seeded_generator())
    expected, _ = slowly_clipped(model, examples, 0.5, [])
    assert all((found[key] - value).abs().max() < 1e-10 for key, value in expected.items())


def test_frozen_parameters_take_no_part():
    model, examples = small(), batch()
    model[0].requires_grad_(False)
    zeros = {key: torch.zeros_like(p) for key, p in model.named_parameters() if p.requires_grad}
    out = DpSgd(max_norm=1.0, noise_multiplier=0.0)(zeros, model=model, batch=examples, generator=seeded_generator())
    assert out.keys() == zeros.keys()


def test_the_clipped_sum_is_that_of_opacus_where_opacus_is_right():
    import opacus
    from opacus.optimizers import DPOptimizer

    model, (x, y) = small(), batch()
    zeros = {key: torch.zeros_like(p) for key, p in model.named_parameters()}
    found = DpSgd(max_norm=0.5, noise_multiplier=0.0)(zeros, model=model, batch=(x, y), generator=seeded_generator())
    watched = opacus.GradSampleModule(model.train())
    optimiser = DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=1.0), noise_multiplier=0.0, max_grad_norm=0.5, expected_batch_size=5
    )
    F.cross_entropy(watched(x.requires_grad_()), y).backward()
    optimiser.pre_step()
    for name, value in model.named_parameters():
        # Opacus divides by the norm plus 1e-6.
        torch.testing.assert_close(found[name], value.grad, rtol=1e-5, atol=1e-9)


def test_models_that_mix_examples_are_refused():
    defence = DpSgd(max_norm=1.0, noise_multiplier=1.0)
    with pytest.raises(ValueError, match=r"\(bn1, layer1.0.bn1, .* and 16 more\).*GroupNorm"):
        defence.check(ARCHITECTURES["resnet18"]())
    running = nn.Sequential(nn.InstanceNorm2d(3, affine=True, track_running_stats=True))
    with pytest.raises(ValueError, match=r"running statistics \(0\)"):
        defence.check(running)
    with pytest.raises(ValueError, match=r"\(the model itself\)"):
        defence.check(nn.BatchNorm2d(3, affine=False))
    for name in ("resnet18-group-norm", "vit", "vgg11"):
        defence.check(ARCHITECTURES[name]())
    defence.check(nn.InstanceNorm2d(3, affine=True))


def test_settings_are_checked():
    with pytest.raises(ValueError, match="positive, finite max_norm"):
        DpSgd(max_norm=0.0, noise_multiplier=1.0)
    with pytest.raises(ValueError, match="noise_multiplier of 0 or more, got -1"):
        DpSgd(max_norm=1.0, noise_multiplier=-1.0)
    with pytest.raises(ValueError, match="dp looks at the model and the batch"):
        DpSgd(max_norm=1.0, noise_multiplier=1.0)({}, generator=seeded_generator())


def test_without_opacus_epsilon_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs Opacus.*pip install 'fl-precode\[dp\]'"):
        dp_epsilon(noise_multiplier=1.0, sample_rate=0.1, steps=1)


@pytest.mark.parametrize(("sigma", "steps"), [(1.0, 1), (4.0, 20), (20.0, 50)])
def test_epsilon_of_full_batches_is_that_of_composed_gaussians(sigma, steps):
    delta = 1e-5
    rho = steps / (2 * sigma**2)  # zero-concentrated DP, Bun and Steinke 2016, proposition 1.6 and lemma 1.7
    bound = rho + 2 * math.sqrt(rho * math.log(1 / delta))
    found = dp_epsilon(noise_multiplier=sigma, sample_rate=1.0, steps=steps, delta=delta)
    # Opacus converts from the same Rényi curve, a little more tightly and on a grid of orders.
    assert 0.6 * bound < found < bound


def test_epsilon_grows_with_steps_and_rate_and_falls_with_noise():
    def epsilon(**changes):
        return dp_epsilon(**{"noise_multiplier": 1.1, "sample_rate": 0.01, "steps": 100, "delta": 1e-5, **changes})

    assert epsilon(steps=200) > epsilon() > epsilon(steps=50) > 0
    assert epsilon(sample_rate=0.02) > epsilon() > epsilon(noise_multiplier=2.0)
    assert epsilon(delta=1e-7) > epsilon()
    assert epsilon(steps=0) == 0.0
    assert epsilon(noise_multiplier=0.0) == math.inf
    for bad in ({"sample_rate": 0.0}, {"sample_rate": 1.1}, {"steps": -1}, {"delta": 0.0}, {"noise_multiplier": -1.0}):
        with pytest.raises(ValueError, match="0 < sample_rate <= 1"):
            epsilon(**bad)
