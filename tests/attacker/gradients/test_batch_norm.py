"""Batch normalisation with batch statistics: the numbers of torch in training mode, for many candidates at once."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from attacker.gradients.batch_norm import BatchStatisticsNorm, batch_norms, batches_of, with_batch_statistics
from attacker.gradients.distances import cosine_distance
from attacker.gradients.double_backward import LoopProducts
from attacker.gradients.ghost.ghost import FactoredProducts
from attacker.gradients.one_step import DenseProducts, gradient_products
from attacker.gradients.replay import Replay
from attacker.gradients.trace import trace
from tests.attacker import tiny


def small_net(spec):
    return nn.Sequential(
        nn.Conv2d(spec.channels, 3, 3),
        nn.BatchNorm2d(3),
        nn.Softplus(),
        nn.Flatten(),
        nn.Linear(3 * 4 * 4, 5),
        nn.BatchNorm1d(5, affine=False),
        nn.Linear(5, spec.classes),
    )


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm1d(3), (4, 3)),
        (nn.BatchNorm1d(3, affine=False), (4, 3, 5)),
        (nn.BatchNorm2d(3, eps=0.1), (2, 3, 4, 5)),
        (nn.BatchNorm3d(3, track_running_stats=False), (2, 3, 2, 2, 2)),
    ],
    ids=str,
)
def test_it_equals_torch_in_training_mode(layer, shape):
    x = torch.randn(shape, dtype=torch.float64)
    layer = layer.double()
    if layer.affine:
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    torch.testing.assert_close(BatchStatisticsNorm(layer)(x), layer.train()(x), atol=1e-12, rtol=0)


def test_neighbours_form_batches_of_their_own():
    model = with_batch_statistics(nn.Sequential(nn.BatchNorm2d(2))).double()
    x = torch.randn(6, 2, 3, 3, dtype=torch.float64)
    with batches_of(model, 2):
        together = model(x)
    apart = torch.cat([model(part) for part in x.split(2)])
    torch.testing.assert_close(together, apart, atol=1e-12, rtol=0)
    assert not torch.allclose(model(x), apart)


def test_only_the_copy_is_changed_and_names_stay():
    model = small_net(tiny.inputs()).eval()
    names = [name for name, _ in model.named_parameters()]
    assert batch_norms(model) == ["1", "5"]
    changed = with_batch_statistics(model)
    assert [name for name, _ in changed.named_parameters()] == names
    assert not list(changed.buffers())
    assert batch_norms(changed) == []
    assert isinstance(model[1], nn.BatchNorm2d)
    assert isinstance(with_batch_statistics(nn.BatchNorm2d(2)), BatchStatisticsNorm)


@pytest.mark.parametrize("kind", [DenseProducts, FactoredProducts], ids=lambda one: one.__name__)
@pytest.mark.parametrize("own_weights", [False, True])
@pytest.mark.parametrize("batch", [2, 3])
def test_products_equal_those_of_torch_in_training_mode(batch, own_weights, kind):
    torch.manual_seed(0)
    spec = tiny.inputs()
    model = small_net(spec).double()
    changed = tiny.victim(with_batch_statistics(model), spec)
    weights = [{name: value.detach() for name, value in model.named_parameters()}] * 2
    if own_weights:
        weights[1] = {name: value + 0.1 * torch.randn_like(value) for name, value in weights[0].items()}
    candidates = torch.randn(2, 2, batch, *spec.shape, dtype=torch.float64).requires_grad_(True)
    labels = torch.randint(spec.classes, (2, 2, batch))
    targets = [{name: torch.randn_like(value) for name, value in weights[0].items()} for _ in range(2)]
    plain = tiny.victim(copy.deepcopy(model), spec)
    plain.model.train()
    for module in plain.model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.track_running_stats = False  # nothing to update
    expected = cosine_distance(LoopProducts([Replay(plain, one, {}) for one in weights], targets)(candidates, labels))
    replay = [Replay(changed, one, {}) for one in weights] if own_weights else Replay(changed, weights[0], {})
    seen = trace(changed)
    products = (
        DenseProducts(replay, targets)
        if kind is DenseProducts
        else FactoredProducts(replay, targets, seen, batch_size=batch)
    )
    found = cosine_distance(products(candidates, labels))
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=0)
    gradients = [torch.autograd.grad(one.sum(), candidates)[0] for one in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-8, rtol=0)


def test_batch_statistics_take_the_fastest_way():
    spec = tiny.inputs()
    changed = tiny.victim(with_batch_statistics(small_net(spec)), spec)
    parameters = {name: value.detach() for name, value in changed.model.named_parameters()}
    targets = [{name: torch.randn_like(value) for name, value in parameters.items()}]
    chosen = gradient_products(Replay(changed, parameters, {}), targets, trace(changed), batch_size=2)
    assert isinstance(chosen, FactoredProducts)
