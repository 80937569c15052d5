"""Two row spaces: what they contain, how found inputs are taken out of them, and where noise ends them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attacker.analytic.low_rank import LowRank
from attacker.analytic.spans.batch_search import find_inputs
from attacker.analytic.spans.confirmation import unexplained
from attacker.analytic.spans.deflation import Deflation
from attacker.analytic.spans.observed_layers import two_layers
from attacker.analytic.spans.signal_rank import above_noise
from attacker.analytic.spans.token_batch import perceptron_of_block
from attacker.analytic.spans.two_spans import SpanSearch, TwoLayers
from attacker.gradients.trace import trace
from attacker.reasons import Reason
from tests.attacker import tiny

SPEC = tiny.inputs(side=8)


def with_ones(x):
    return torch.cat([x, torch.ones_like(x[:, :1])], dim=1)


def layers_of(count=5, *, features=20, units=64, outputs=30):
    """Two layers whose gradients are sums over random inputs, which are given with their backward passes."""
    torch.manual_seed(0)
    first, second = nn.Linear(features, units).double(), nn.Linear(units, outputs).double()
    x = torch.randn(count, features, dtype=torch.float64)
    outer = torch.randn(count, outputs, dtype=torch.float64)
    values = first(x)
    inner = (1 - torch.tanh(values) ** 2) * (outer @ second.weight)
    activations = with_ones(torch.tanh(values)).detach()
    layers = TwoLayers(
        first=above_noise((inner.T @ with_ones(x)).detach(), 10, name="1"),
        second=above_noise((outer.T @ activations).detach(), 10, name="2"),
        weight=torch.cat([first.weight, first.bias[:, None]], dim=1).detach(),
        behind=second.weight.detach(),
        activation=torch.tanh,
        second_bias=True,
    )
    return layers, x, inner.detach(), outer


def test_true_inputs_fit_and_mixtures_do_not():
    layers, x, *_ = layers_of()
    search = SpanSearch(layers, layers.first.right, layers.second.right)
    assert float(search.misfit(search.coordinates(with_ones(x))).max()) < 1e-10
    mixed = with_ones((x + x.roll(1, dims=0)) / 2)
    assert float(search.misfit(search.coordinates(mixed)).min()) > 1e-2
    assert torch.allclose(search.inputs(search.coordinates(mixed)), mixed)


def test_backward_passes_have_the_sizes_that_both_gradients_give():
    layers, x, inner, outer = layers_of()
    for one, image in enumerate(with_ones(x)):
        found = Deflation(layers).backward(image)
        assert torch.allclose(found.inner, inner[one])
        assert torch.allclose(found.outer, outer[one])
        assert found.misfit < 1e-8
        assert found.gap < 1e-8
    assert Deflation(layers).backward(with_ones(x).mean(dim=0)).misfit > 1e-2


def test_what_is_taken_out_is_gone_and_the_others_stay():
    layers, x, *_ = layers_of()
    deflation = Deflation(layers)
    taken = [deflation.backward(image) for image in with_ones(x[:2])]
    inside, target = deflation.remaining(taken)
    assert len(inside) == len(target) == 3

    def outside(rows, basis):
        return torch.linalg.vector_norm(rows - rows @ basis.T @ basis, dim=1)

    assert float(outside(with_ones(x[2:]), inside).max()) < 1e-8
    assert float(outside(with_ones(x[:2]), inside).min()) > 1e-2
    assert torch.equal(deflation.remaining([])[0], layers.first.right)


def test_the_update_confirms_what_was_found():
    layers, x, inner, _ = layers_of()
    found = find_inputs(layers, torch.Generator().manual_seed(0))
    assert len(found.inputs) == found.rank == 5
    gradient = inner.T @ x
    deltas = torch.stack([one.inner for one in found.backward])
    assert unexplained(gradient, deltas, found.inputs) < 1e-8
    assert unexplained(gradient, deltas, found.inputs.roll(1, dims=0)) > 0.1


@pytest.mark.parametrize("noise", [1e-12, 1e-6, 1e-3])
def test_the_rank_is_what_stands_above_the_noise(noise):
    torch.manual_seed(0)
    left = torch.linalg.qr(torch.randn(80, 6, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(120, 6, dtype=torch.float64)).Q
    values = torch.tensor([1.0, 0.3, 1e-1, 1e-4, 1e-8, 1e-10], dtype=torch.float64)
    matrix = (left * values) @ right.T + noise * torch.randn(80, 120, dtype=torch.float64)
    found = above_noise(matrix, 10, name="w")
    assert isinstance(found, LowRank)
    assert found.rank == int((values > noise * (80**0.5 + 120**0.5)).sum())
    assert found.noise == pytest.approx(noise, rel=0.2)


def test_ranks_beyond_the_limit_zeros_and_mere_noise_are_named():
    torch.manual_seed(0)
    matrix = torch.randn(40, 5, dtype=torch.float64) @ torch.randn(5, 60, dtype=torch.float64)
    for one, limit, code in (
        (matrix, 4, "rank-unclear"),
        (torch.zeros(4, 6), 4, "gradient-is-zero"),
        (torch.randn(60, 80), 4, "rank-unclear"),
    ):
        found = above_noise(one, limit, name="w")
        assert isinstance(found, Reason)
        assert found.code == code


class TinyTransformer(nn.Module):
    """One pre-norm block over the patches of an image."""

    def __init__(self, width=24):
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, stride=4)
        self.position = nn.Parameter(0.1 * torch.randn(1, 4, width))
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.query, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        hidden = self.norm1(tokens)
        weights = torch.softmax(self.query(hidden) @ hidden.transpose(1, 2), dim=-1)
        tokens = tokens + weights @ self.value(hidden)
        tokens = tokens + self.fc2(nn.functional.gelu(self.fc1(self.norm2(tokens))))
        return self.head(torch.tanh(self.norm3(tokens)).mean(dim=1))


def test_the_tokens_of_a_batch_are_found():
    torch.manual_seed(0)
    victim = tiny.victim(TinyTransformer(), SPEC)
    x, seen = tiny.images(SPEC, 4), []
    observation = tiny.observe(victim, x, [0, 1, 2, 3])
    pair = perceptron_of_block(victim, trace(victim))
    assert (pair.first, pair.second, pair.kind) == ("fc1", "fc2", "GELU")
    handle = victim.model.fc1.register_forward_hook(lambda _module, arguments, _output: seen.append(arguments[0]))
    with torch.no_grad():
        victim.model(x)
    handle.remove()
    found = find_inputs(two_layers(observation, pair, 23, expected=16), torch.Generator().manual_seed(0))
    assert found.rank == len(found.inputs) == 16
    assert float(torch.cdist(seen[0].reshape(16, -1), found.inputs).min(dim=1).values.max()) < 1e-6
    assert perceptron_of_block(victim, trace(victim), block=1).code == "no-token-perceptron"
