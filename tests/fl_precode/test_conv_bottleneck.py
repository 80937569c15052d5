"""The convolutional bottleneck: mathematics, noise, places, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from fl_precode import ConvBottleneck, extend_conv, sample_noise, track_kl
from fl_precode.defences.cvb import default_latent
from fl_precode.models import InputSpec, build_model
from tests.fl_precode.small_models import Model, plain

INPUTS = InputSpec(channels=3, height=32, width=32, classes=10, mean=(0.5,) * 3, std=(0.5,) * 3)


def statistics(bottleneck, hidden):
    """mu and sigma by the paper's formulas, with two convolutions in place of one."""
    mu_kernel, stat_kernel = bottleneck.encoder.weight.chunk(2)
    pad = bottleneck.kernel // 2
    mu = F.conv2d(hidden, mu_kernel, padding=pad)
    return mu, F.softplus(F.conv2d(hidden, stat_kernel, padding=pad).clamp(-5, 5))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 10), st.sampled_from([1, 3, 5]), st.integers(0, 1000))
def test_kl_and_output_by_the_definition(batch, channels, kernel, seed):
    torch.manual_seed(seed)
    bottleneck = ConvBottleneck(channels, kernel=kernel, beta=0.3).double()
    hidden = 3 * torch.randn(batch, channels, 4, 6).double()
    eps = torch.randn(batch, bottleneck.latent, 4, 6).double()
    mu, sigma = statistics(bottleneck, hidden)
    with track_kl() as kl, sample_noise(values=[eps]):
        out = bottleneck(hidden)
    nats = kl_divergence(Normal(mu, sigma), Normal(0.0, 1.0)).sum((1, 2, 3)).mean()
    assert kl.nats(out).item() == pytest.approx(nats.item(), rel=1e-9)
    assert kl.penalty(out).item() == pytest.approx(0.3 * nats.item() / 24, rel=1e-9)
    expected = F.conv2d(mu + eps * sigma, bottleneck.decoder.weight)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)


def test_the_penalty_of_a_map_does_not_depend_on_its_size():
    bottleneck = ConvBottleneck(4, kernel=1).double()
    penalties = []
    for side in (4, 16):
        with track_kl() as kl:
            out = bottleneck(torch.ones(2, 4, side, side).double())
        penalties.append(kl.penalty(out).item())
    assert penalties[0] == pytest.approx(penalties[1], rel=1e-12)


def test_the_reference_preset_weighs_its_own_term_and_reports_true_nats():
    torch.manual_seed(3)
    ours = ConvBottleneck(9, beta=0.2).double()
    theirs = ConvBottleneck(9, beta=0.2, reference_kl=True).double()
    theirs.load_state_dict(ours.state_dict())
    hidden = torch.randn(2, 9, 5, 5).double()
    mu, sigma = statistics(ours, hidden)
    results = []
    for bottleneck in (ours, theirs):
        with track_kl() as kl:
            out = bottleneck(hidden)
        results.append((kl.nats(out).item(), kl.penalty(out).item()))
    # Mean over images and positions of the sum over channels.
    expected = (-0.5 * (1 + sigma - mu**2 - sigma.exp()).sum(1)).mean()
    assert results[1][1] == pytest.approx(0.2 * expected.item(), rel=1e-10)
    assert results[0][0] == results[1][0]
    assert abs(results[0][1] - results[1][1]) > 1e-3


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_kl_and_gradients_are_finite_for_extreme_inputs(size):
    torch.manual_seed(0)
    bottleneck = ConvBottleneck(3, kernel=3)
    with torch.no_grad():
        bottleneck.encoder.weight[: bottleneck.latent] = 0  # mu; its square may overflow, sigma must not
    hidden = (size * torch.randn(1, 3, 4, 4)).requires_grad_()
    with track_kl() as kl:
        out = bottleneck(hidden)
    (out.sum() + kl.penalty(out)).backward()
    assert math.isfinite(kl.nats(out).item())
    assert bool(hidden.grad.isfinite().all())
    assert bool(bottleneck.encoder.weight.grad[bottleneck.latent :].isfinite().all())


def test_noise_is_fresh_in_evaluation_mode_and_of_the_announced_shape():
    bottleneck = ConvBottleneck(4, latent=3).eval()
    hidden = torch.randn(2, 4, 5, 7)
    assert not torch.equal(bottleneck(hidden), bottleneck(hidden))
    shape = bottleneck.latent_shape(hidden.shape[1:])
    assert shape == (3, 5, 7)
    eps = torch.randn(2, *shape, requires_grad=True)
    with sample_noise(values=[eps]):
        bottleneck(hidden).sum().backward()
    assert eps.grad.abs().sum() > 0
    with pytest.raises(ValueError, match=r"\(2, 3, 5, 7\), got \(2, 3\)"), sample_noise(values=[torch.zeros(2, 3)]):
        bottleneck(hidden)


def test_per_example_gradients_by_vmap_equal_those_of_a_loop():
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), ConvBottleneck(2, latent=2, kernel=3), nn.Flatten(), nn.Linear(32, 3)
    ).double()
    x, eps = torch.randn(3, 1, 6, 6).double(), torch.randn(3, 2, 4, 4).double()
    y = torch.tensor([0, 1, 2])

    def loss(parameters, image, label, noise):
        with track_kl() as kl, sample_noise(values=[noise[None]]):
            logits = functional_call(net, parameters, (image[None],))
        return F.cross_entropy(logits, label[None]) + kl.penalty(logits)

    parameters = {name: p.detach() for name, p in net.named_parameters()}
    fast = vmap(grad(loss), in_dims=(None, 0, 0, 0))(parameters, x, y, eps)
    for i in range(3):
        slow = grad(loss)(parameters, x[i], y[i], eps[i])
        for name in slow:
            torch.testing.assert_close(fast[name][i], slow[name], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("channels", "latent"), [(1, 8), (7, 8), (8, 4), (9, 4), (64, 32)])
def test_parameter_counts(channels, latent):
    assert default_latent(channels) == latent
    count = sum(p.numel() for p in ConvBottleneck(channels).parameters())
    assert count == 25 * channels * 2 * latent + latent * channels


def test_on_lenet_it_stands_before_the_second_convolution():
    lenet = build_model("lenet", INPUTS, seed=0)
    defended = extend_conv(lenet, torch.zeros(1, *INPUTS.shape))
    found = defended.conv2.bottleneck
    assert (found.channels, found.latent, found.kernel, found.beta, found.reference_kl) == (12, 6, 5, 0.1, False)
    # 12 -> 2 * 6 by 5x5, 6 -> 12 by 1x1, no biases
    assert sum(p.numel() for p in defended.parameters()) == 15_826 + 3600 + 72
    other = extend_conv(
        lenet, torch.zeros(1, *INPUTS.shape), latent=2, kernel=3, beta=0.5, before="conv3", reference_kl=True
    ).conv3.bottleneck
    assert (other.latent, other.kernel, other.beta, other.reference_kl) == (2, 3, 0.5, True)


def test_models_without_feature_maps_are_refused_with_advice():
    with pytest.raises(ValueError, match=r"no torch.nn.Conv2d layer.*needs feature maps.*Use precode"):
        extend_conv(build_model("mlp", INPUTS, seed=0), torch.zeros(1, *INPUTS.shape))
    with pytest.raises(
        ValueError, match=r"feature maps \(channels, height, width\) to enter 'fc2', got \(5,\).*precode"
    ):
        extend_conv(plain(), torch.zeros(1, 6), before="fc2")
    with pytest.raises(ValueError, match=r"no module named 'conv9'"):
        extend_conv(build_model("lenet", INPUTS, seed=0), torch.zeros(1, *INPUTS.shape), before="conv9")


def test_a_shortcut_around_every_module_is_ambiguous():
    shortcut = Model(
        lambda m, x: m.head((m.a(x) + m.b(m.a(x))).flatten(1)),
        a=nn.Conv2d(1, 1, 3, padding=1),
        b=nn.Conv2d(1, 1, 3, padding=1),
        head=nn.Linear(16, 2),
    )
    with pytest.raises(ValueError, match="ambiguous insertion point.*Conv2d layers in order of execution: 'a', 'b'"):
        extend_conv(shortcut, torch.zeros(1, 1, 4, 4))
    twice = Model(lambda m, x: m.a(m.a(x)), a=nn.Conv2d(1, 1, 3, padding=1))
    with pytest.raises(ValueError, match="the second convolution, 'a', runs 2 times"):
        extend_conv(twice, torch.zeros(1, 1, 8, 8))


def test_settings_and_shapes_are_checked():
    for bad, message in (
        ({"channels": 0}, "positive channels, got 0"),
        ({"channels": 4, "latent": 0}, "positive latent, got 0"),
        ({"channels": 4, "kernel": 4}, "odd, positive kernel"),
        ({"channels": 4, "kernel": -1}, "odd, positive kernel"),
        ({"channels": 4, "beta": -1.0}, "finite beta"),
    ):
        with pytest.raises(ValueError, match=message):
            ConvBottleneck(**bad)
    for shape in ((4, 5, 5), (1, 3, 5, 5), (1, 4)):
        with pytest.raises(ValueError, match=r"expected \(batch, 4, height, width\)"):
            ConvBottleneck(4)(torch.zeros(shape))
