"""The bottleneck against torch.distributions, its noise sources, and torch.func."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn import functional as F

from fl_precode import VariationalBottleneck, extend, sample_noise, track_kl


@pytest.fixture
def defended():
    """A small defended classifier in float64: inputs (batch, 6), 3 classes, latent 4."""
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    return extend(net, torch.zeros(1, 6, dtype=torch.float64), latent=4, beta=0.1)


def bottleneck_with(mu: torch.Tensor, stat: torch.Tensor) -> VariationalBottleneck:
    """A bottleneck whose encoder always answers with these statistics."""
    bottleneck = VariationalBottleneck(1, latent=len(mu), beta=0.5).to(mu.dtype)
    with torch.no_grad():
        bottleneck.encoder.weight.zero_()
        bottleneck.encoder.bias.copy_(torch.cat([mu, stat]))
    return bottleneck


def kl_of(bottleneck: VariationalBottleneck, hidden: torch.Tensor) -> torch.Tensor:
    with track_kl() as kl:
        out = bottleneck(hidden)
    return kl.nats(out)


def inverse_softplus(sigma: float) -> float:
    return math.log(math.expm1(sigma))


def test_kl_is_zero_at_the_prior():
    at_prior = bottleneck_with(torch.zeros(3).double(), torch.full((3,), inverse_softplus(1.0)).double())
    assert kl_of(at_prior, torch.ones(2, 1).double()).item() == pytest.approx(0, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 1000))
def test_kl_equals_torch_distributions(batch, latent, seed):
    torch.manual_seed(seed)
    bottleneck = VariationalBottleneck(3, latent=latent).double()
    hidden = 5 * torch.randn(batch, 3).double()
    mu, stat = bottleneck.encoder(hidden).split(latent, dim=1)
    expected = kl_divergence(Normal(mu, F.softplus(stat)), Normal(0.0, 1.0)).sum(1).mean()
    assert kl_of(bottleneck, hidden).item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("stat", [-1e4, -150.0, -20.0, 0.0, 30.0])
def test_kl_and_its_gradient_are_finite_where_softplus_underflows(dtype, stat):
    bottleneck = bottleneck_with(torch.zeros(1).to(dtype), torch.full((1,), stat).to(dtype))
    kl = kl_of(bottleneck, torch.ones(1, 1, dtype=dtype))
    kl.backward()
    slope = bottleneck.encoder.bias.grad[1].item()
    sigma = math.log1p(math.exp(stat))
    logarithm = math.log(sigma) if sigma > 0 else stat
    sigmoid = 1 / (1 + math.exp(-stat)) if stat > -700 else 0.0
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5
    assert kl.item() == pytest.approx(0.5 * (sigma**2 - 1) - logarithm, rel=tolerance)
    assert slope == pytest.approx(sigma * sigmoid - (sigmoid / sigma if sigma > 0 else 1.0), rel=tolerance)


def test_log_softplus_is_smooth_at_the_branch():
    around = torch.tensor([-20 - 1e-9, -20.0, -20 + 1e-9], dtype=torch.float64)
    values = [kl_of(bottleneck_with(torch.zeros(1).double(), s.view(1)), torch.ones(1, 1).double()) for s in around]
    assert values[0].item() == pytest.approx(values[2].item(), abs=1e-8)
    expected = 0.5 * (math.log1p(math.exp(-20)) ** 2 - 1) - math.log(math.log1p(math.exp(-20)))
    assert values[1].item() == pytest.approx(expected, abs=1e-12)


def test_output_is_the_decoded_sample_in_the_shape_of_the_input():
    bottleneck = VariationalBottleneck(12, latent=4)
    hidden = torch.randn(5, 3, 2, 2)
    eps = torch.randn(5, 4)
    with sample_noise(values=[eps]):
        out = bottleneck(hidden)
    mu, stat = bottleneck.encoder(hidden.flatten(1)).split(4, dim=1)
    expected = bottleneck.decoder(mu + eps * F.softplus(stat)).reshape(5, 3, 2, 2)
    assert torch.equal(out, expected)


def test_noise_is_fresh_in_evaluation_mode_too(defended):
    defended.eval()
    x = torch.randn(2, 6).double()
    assert not torch.equal(defended(x), defended(x))


def test_noise_is_standard_normal():
    quiet = bottleneck_with(torch.zeros(1), torch.tensor([inverse_softplus(1.0)]))
    with torch.no_grad():
        quiet.decoder.weight.fill_(1.0)
        quiet.decoder.bias.zero_()
    draws = quiet(torch.zeros(20_000, 1)).detach()
    assert draws.mean().abs() < 0.03
    assert abs(draws.std() - 1) < 0.02


def test_a_generator_decides_the_noise_and_the_global_one_is_left_alone(defended):
    x = torch.randn(2, 6).double()
    before = torch.random.get_rng_state()
    outs = []
    for seed in (1, 1, 2):
        with sample_noise(torch.Generator().manual_seed(seed)):
            outs.append(defended(x))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_innermost_noise_source_counts_and_the_outer_one_returns(defended):
    x = torch.zeros(1, 6).double()
    with sample_noise(values=[torch.zeros(1, 4)]):
        with sample_noise():
            random = defended(x)
        fixed = defended(x)
    with sample_noise(values=[torch.zeros(1, 4)]):
        assert torch.equal(defended(x), fixed)
    assert not torch.equal(random, fixed)


def test_gradients_reach_explicit_noise(defended):
    eps = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    with sample_noise(values=[eps]):
        defended(torch.ones(1, 6).double()).sum().backward()
    assert eps.grad.abs().sum() > 0


def test_bad_noise_is_refused(defended):
    x = torch.zeros(2, 6).double()
    with (
        pytest.raises(ValueError, match=r"\(batch, latent\) = \(2, 4\), got \(4,\)"),
        sample_noise(values=[torch.zeros(4)]),
    ):
        defended(x)
    with pytest.raises(ValueError, match="given 0 noise"), sample_noise(values=[]):
        defended(x)
    with (
        pytest.raises(ValueError, match=r"given 2 noise tensor\(s\), but only 1"),
        sample_noise(values=[torch.zeros(2, 4)] * 2),
    ):
        defended(x)
    with pytest.raises(ValueError, match="got both"), sample_noise(torch.Generator(), values=[]):
        pass


def test_an_error_inside_is_not_hidden_by_the_count_of_unused_noise():
    with pytest.raises(KeyError, match="mine"), sample_noise(values=[torch.zeros(1, 4)]):
        raise KeyError("mine")


def test_several_bottlenecks_add_up_and_take_noise_in_execution_order():
    first, second = VariationalBottleneck(3, latent=2, beta=0.1), VariationalBottleneck(3, latent=5, beta=0.7)
    x = torch.randn(4, 3)
    with track_kl() as kl, sample_noise(values=[torch.zeros(4, 2), torch.zeros(4, 5)]):
        middle = first(x)
        out = second(middle)
    one, two = kl_of(first, x), kl_of(second, middle)
    assert len(kl) == 2
    assert torch.allclose(kl.nats(out), one + two)
    assert torch.allclose(kl.penalty(out), 0.1 * one + 0.7 * two)


def test_without_a_bottleneck_the_penalty_is_zero():
    with track_kl() as kl:
        out = nn.Linear(2, 2).double()(torch.zeros(1, 2).double())
    assert kl.nats(out).dtype == torch.float64
    assert kl.nats(out).item() == kl.penalty(out).item() == 0.0


def test_only_the_innermost_tracker_records_and_nothing_outside_one(defended):
    x = torch.zeros(1, 6).double()
    with track_kl() as outer:
        with track_kl() as inner:
            defended(x)
        assert (len(outer), len(inner)) == (0, 1)
        defended(x)
    defended(x)
    assert (len(outer), len(inner)) == (1, 1)


def test_beta_weighs_the_penalty_and_its_gradient():
    gradients = []
    for beta in (0.0, 1.0):
        torch.manual_seed(1)
        bottleneck = VariationalBottleneck(3, latent=2, beta=beta)
        with track_kl() as kl:
            out = bottleneck(torch.ones(1, 3))
        (0 * out.sum() + kl.penalty(out)).backward()
        gradients.append(bottleneck.encoder.weight.grad.abs().sum().item())
    assert gradients[0] == 0
    assert gradients[1] > 0


def test_settings_and_shapes_are_checked():
    with pytest.raises(ValueError, match="positive features, got 0"):
        VariationalBottleneck(0)
    with pytest.raises(ValueError, match="positive latent, got 0"):
        VariationalBottleneck(3, latent=0)
    for beta in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="finite beta"):
            VariationalBottleneck(3, beta=beta)
    for shape in ((3,), (2, 4), (2, 3, 2)):
        with pytest.raises(ValueError, match="3 numbers per example"):
            VariationalBottleneck(3)(torch.zeros(shape))


def loss_of(model, parameters, x, y, eps=None):
    with track_kl() as kl:
        if eps is None:
            logits = functional_call(model, parameters, (x.unsqueeze(0),))
        else:
            with sample_noise(values=[eps.unsqueeze(0)]):
                logits = functional_call(model, parameters, (x.unsqueeze(0),))
    return F.cross_entropy(logits, y.unsqueeze(0)) + kl.penalty(logits)


def test_per_example_gradients_by_vmap_equal_those_of_a_loop(defended):
    x, y, eps = torch.randn(3, 6).double(), torch.tensor([0, 2, 1]), torch.randn(3, 4).double()
    parameters = {name: p.detach() for name, p in defended.named_parameters()}
    fast = vmap(grad(lambda p, *case: loss_of(defended, p, *case)), in_dims=(None, 0, 0, 0))(parameters, x, y, eps)
    for i in range(3):
        defended.zero_grad()
        with track_kl() as kl, sample_noise(values=[eps[i : i + 1]]):
            logits = defended(x[i : i + 1])
        (F.cross_entropy(logits, y[i : i + 1]) + kl.penalty(logits)).backward()
        for name, p in defended.named_parameters():
            assert torch.allclose(fast[name][i], p.grad, atol=1e-12), name


@pytest.mark.parametrize("with_generator", [False, True])
def test_under_vmap_every_example_gets_its_own_noise(defended, with_generator):
    x, y = torch.ones(4, 6).double(), torch.zeros(4, dtype=torch.long)
    parameters = {name: p.detach() for name, p in defended.named_parameters()}
    per_example = vmap(grad(lambda p, *c: loss_of(defended, p, *c)), in_dims=(None, 0, 0), randomness="different")
    if with_generator:
        with sample_noise(torch.Generator().manual_seed(3)):
            found = per_example(parameters, x, y)
        with sample_noise(torch.Generator().manual_seed(3)):
            again = per_example(parameters, x, y)
        assert all(torch.equal(found[name], again[name]) for name in found)
    else:
        found = per_example(parameters, x, y)
    decoder = found["2.bottleneck.decoder.weight"]
    assert len({tuple(row.flatten().tolist()) for row in decoder}) == 4


def test_second_derivatives_pass_the_bottleneck(defended):
    """Gradient matching differentiates the gradient: check one entry by finite differences."""
    parameters = {name: p.detach() for name, p in defended.named_parameters()}
    y, eps = torch.tensor(1), torch.randn(4).double()
    x = torch.randn(6).double()

    def encoder_gradient(x):
        return grad(lambda p: loss_of(defended, p, x, y, eps))(parameters)["2.bottleneck.encoder.weight"][0, 0]

    step = 1e-6 * torch.eye(6).double()[2]
    expected = (encoder_gradient(x + step) - encoder_gradient(x - step)) / 2e-6
    assert jacrev(encoder_gradient)(x)[2].item() == pytest.approx(expected.item(), abs=1e-7)


def test_copies_pickles_and_state_after_a_forward(defended):
    x = torch.randn(2, 6).double()
    with track_kl() as kl:
        out = defended(x)
    (out.sum() + kl.penalty(out)).backward(retain_graph=True)
    stored = [v for m in defended.modules() for v in vars(m).values() if isinstance(v, torch.Tensor)]
    assert stored == []
    fresh = extend(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), torch.zeros(1, 6), latent=4).double()
    fresh.load_state_dict(defended.state_dict())
    for twin in (copy.deepcopy(defended), pickle.loads(pickle.dumps(defended)), fresh):
        with sample_noise(torch.Generator().manual_seed(5)):
            expected = defended(x)
        with sample_noise(torch.Generator().manual_seed(5)):
            assert torch.equal(twin(x), expected)
    assert "latent=4, beta=0.1" in repr(defended)
