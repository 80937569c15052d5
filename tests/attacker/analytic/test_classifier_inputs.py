"""Entrances: a classifier without bias, and R-GAP's single logit."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from attacker.analytic.classifier_inputs import enter_one_logit, enter_without_bias, one_logit_margins
from attacker.analytic.known_quantities import Leaked
from attacker.analytic.layer_chain import chain
from attacker.analytic.layer_inversion import invert_chain
from attacker.metrics.similarity import psnr
from attacker.optim.lsmr import solve
from attacker.victim import Victim
from fl_precode.data import load_data
from fl_precode.models.input_spec import InputSpec


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), label=st.integers(0, 4), length=st.floats(-2, 1.5))
@example(seed=165, label=0, length=1.5)  # two roots close together
def test_a_classifier_without_bias_tells_label_and_features(seed, label, length):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 9, generator=generator, dtype=torch.float64) / 3
    h = torch.randn(9, generator=generator, dtype=torch.float64)
    h = h * math.exp(length) / h.norm()
    logits = weight @ h
    d = torch.softmax(logits, dim=0)
    d[label] -= 1
    found, entries = enter_without_bias(weight, d[:, None] * h[None])
    assert found == label
    torch.testing.assert_close(entries[0].features, h, rtol=0, atol=1e-6)
    torch.testing.assert_close(entries[0].gradient, weight.T @ d, rtol=0, atol=1e-6)


@settings(deadline=None)
@given(u=st.floats(-30, 30).filter(lambda u: abs(u) > 1e-3))
def test_margins_solve_their_equation(u):
    inner = -u / (1 + math.exp(u))
    roots = one_logit_margins(inner)
    assert len(roots) == (1 if u < 0 else 2)
    assert min(abs(root - u) for root in roots) < 1e-5 * max(1, abs(u))
    assert one_logit_margins(0.0) == [0.0]


@pytest.mark.parametrize("label", [-1, 1])
def test_r_gap_on_its_own_network_in_single_precision(label):
    """CNN6 of the paper: LeakyReLU 0.2, no biases, one logit; their code reaches 21.5 dB on such an image."""
    torch.manual_seed(0)
    sizes = (
        (3, 12, 4, 2, 2),
        (12, 36, 3, 2, 1),
        (36, 36, 3, 1, 1),
        (36, 36, 3, 1, 1),
        (36, 64, 3, 2, 1),
        (64, 128, 3, 1, 1),
    )
    layers = []
    for i, o, k, s, p in sizes:
        layers += [nn.Conv2d(i, o, k, stride=s, padding=p, bias=False), nn.LeakyReLU(0.2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(3200, 1, bias=False))
    inputs = InputSpec(channels=3, height=32, width=32, classes=2, mean=(0.0,) * 3, std=(1.0,) * 3)
    x, _ = load_data("photos").train.batch([0])
    x = F.interpolate(x, size=(32, 32))
    F.softplus(-label * model(x)).sum().backward()
    steps = chain(Victim(model=model, inputs=inputs)).steps
    values = {name: value.detach().double()[None] for name, value in model.named_parameters()}
    gradients = {name: value.grad.double()[None] for name, value in model.named_parameters()}
    last = steps[-1].parameter("weight")
    entries = enter_one_logit(values[last][0], gradients[last][0], label)
    quality = []
    for entry in entries:
        leaked = Leaked(
            parameters=values, gradients=gradients, buffers={}, features=entry.features[None],
            gradient=entry.gradient[None],
        )  # fmt: skip
        quality.append(float(psnr(invert_chain(steps[:-1], leaked).inputs, x)))
    assert max(quality) > 95, quality


@settings(deadline=None)
@given(rows=st.integers(2, 9), unknowns=st.integers(2, 9), rank=st.integers(1, 9), seed=st.integers(0, 10_000))
def test_the_solver_finds_the_minimum_norm_solution(rows, unknowns, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    rank = min(rank, rows, unknowns)
    left = torch.linalg.qr(torch.randn(3, rows, rank, generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(3, unknowns, rank, generator=generator, dtype=torch.float64))[0]
    matrix = left @ torch.diag(torch.linspace(1, 3, rank, dtype=torch.float64)) @ right.mT
    matrix[1] *= 1e-4
    b = torch.randn(3, rows, generator=generator, dtype=torch.float64)
    b[2] = 0
    found = solve(lambda x: (matrix @ x.unsqueeze(2)).squeeze(2), lambda y: (matrix.mT @ y.unsqueeze(2)).squeeze(2), b)
    expected = (torch.linalg.pinv(matrix, rtol=1e-9) @ b.unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(found.x[0], expected[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.x[1], expected[1], rtol=1e-9, atol=1e-5)
    assert not found.x[2].any()
    assert found.residuals[2] == 0
    left_over = (b - (matrix @ expected.unsqueeze(2)).squeeze(2)).norm(dim=1) / b.norm(dim=1)
    torch.testing.assert_close(found.residuals[:2], left_over[:2], rtol=1e-6, atol=1e-9)
    assert bool(found.converged.all())


def test_the_solver_says_when_it_was_stopped():
    matrix = torch.diag(torch.logspace(0, 4, 200, dtype=torch.float64))[None]
    b = torch.ones(1, 200, dtype=torch.float64)
    found = solve(
        lambda x: (matrix @ x.unsqueeze(2)).squeeze(2), lambda y: (matrix @ y.unsqueeze(2)).squeeze(2), b, iterations=5
    )
    assert (found.iterations, found.converged.tolist()) == (5, [False])
