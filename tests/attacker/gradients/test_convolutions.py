"""Convolutions served one by one equal those served together, and float32 resolves small distances."""

from __future__ import annotations

import pytest
import torch

from attacker.gradients.distances import cosine_distance
from attacker.gradients.ghost import convolution
from attacker.gradients.ghost.convolution_explicit import Geometry
from attacker.gradients.ghost.ghost import FactoredProducts
from attacker.gradients.replay import Replay
from attacker.gradients.trace import Views
from tests.attacker import tiny
from tests.attacker.gradients.test_products import Problem
from tests.attacker.gradients.test_weights_by_victim import check
from tests.attacker.replay_models import FACTORED, Residual
from tests.oracles import loop_gradient

MODELS = ["convnet", "conv groups", "conv dilated, reflected", "depthwise", "residual with batch norm", "views"]


WAYS = {"one by one": ("_LARGE", 0), "never formed": ("_GRAM_COST", 0)}


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """Small models take the ways of large ones."""
    monkeypatch.setattr(convolution, *WAYS[request.param])


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_the_ways_of_large_models_equal_double_backward(name, batch):
    problem = Problem(FACTORED[name], victims=2, restarts=2, batch=batch)
    problem.check(problem.of_kind("factored"))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", MODELS)
def test_the_ways_of_large_models_with_weights_of_each_victim(name):
    check(Problem(FACTORED[name], victims=3, restarts=2, batch=2), FactoredProducts)


@pytest.mark.parametrize(("channels", "side", "pays"), [(64, 32, False), (256, 8, True)])
def test_few_places_and_many_channels_never_form_the_weight_gradient(channels, side, pays):
    layer = torch.nn.Conv2d(channels, channels, 3, padding=1)
    costs = convolution.Costs.of(layer, torch.empty(1, channels, side, side), 1)
    assert costs.rows == side * side
    assert costs.convolution == side * side * channels * channels * 9
    assert costs.gram == 2 * side**4 * channels  # pixels of the padding are zero: their products are not computed
    assert costs.gram_pays == pays
    assert costs.large


def test_second_derivatives_of_the_products_are_refused():
    problem = Problem(FACTORED["convnet"], victims=1, restarts=1, batch=1)
    distance = cosine_distance(problem.of_kind("factored")(problem.candidates, problem.labels))
    (gradient,) = torch.autograd.grad(distance.sum(), problem.candidates, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    "build",
    [tiny.mlp, tiny.convnet, FACTORED["conv few places"], lambda spec: Residual(spec, channels=32)],
)
def test_float32_resolves_small_distances_near_the_solution(build):
    """At the solution the cosine distance is zero to far below 1e-7, what sums in float32 would leave."""
    problem = Problem(build, victims=4, restarts=1, batch=1)
    problem.victim.model.float()
    weights = {name: value.float() for name, value in problem.parameters.items()}
    x, labels = problem.candidates.detach().float(), problem.labels
    targets = [loop_gradient(problem.victim, weights, x[v, 0], labels[v, 0]) for v in range(4)]
    observed = [{name: value.detach() for name, value in one.items()} for one in targets]
    products = FactoredProducts(Replay(problem.victim, weights, {}), observed, problem.seen, batch_size=1)
    with torch.no_grad():
        distance = cosine_distance(products(x, labels))
    assert distance.dtype == torch.float64
    assert float(distance.abs().max()) < 1e-8


def _geometry(**settings):
    return Geometry.of(torch.nn.Conv2d(6, 12, 5, **settings))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("settings", [{}, {"padding": 2}, {"stride": 2, "padding": 1}])
def test_one_small_image_goes_round_onednn_and_gets_the_same(settings, layout):
    geometry, generator = _geometry(**settings), torch.Generator().manual_seed(0)
    images = torch.randn(1, 6, 11, 11, generator=generator).contiguous(memory_format=layout)
    kernels, biases = torch.randn(12, 6, 5, 5, generator=generator), torch.randn(12, generator=generator)
    assert geometry._is_tiny(images, kernels)
    exact = [value.double().requires_grad_(True) for value in (images, kernels, biases)]
    expected = geometry.forward(exact[0], exact[1], biases=exact[2])
    deltas = torch.randn(expected.shape, generator=generator).contiguous(memory_format=layout)
    found = [
        geometry.forward(images, kernels, biases=biases),
        geometry.towards_images(deltas, images, kernels),
        geometry.towards_kernels(deltas, images, kernels),
    ]
    whole = [expected.detach(), *torch.autograd.grad(expected, exact[:2], deltas.double())]
    for one, other in zip(found, whole, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "images", "dtype"),
    [
        ({"dilation": 2}, 1, torch.float32),
        ({"groups": 2}, 1, torch.float32),
        ({}, 2, torch.float32),
        ({}, 1, torch.float64),
    ],
)
def test_what_does_not_go_round_onednn(settings, images, dtype):
    geometry, kernels = _geometry(**settings), torch.zeros(12, 6, 5, 5)
    assert not geometry._is_tiny(torch.zeros(images, 6, 11, 11, dtype=dtype), kernels)
    assert not _geometry()._is_tiny(torch.zeros(1, 6, 64, 64), kernels)


def test_a_view_of_channels_last_is_a_reshape_inside_the_block_alone():
    images = torch.arange(48.0).reshape(2, 3, 2, 4).contiguous(memory_format=torch.channels_last)
    with Views() as views:
        assert images.view(torch.int32).dtype is torch.int32
        assert not views.any, "another dtype is no other shape"
        assert torch.equal(images.view(2, -1), images.flatten(1))
    assert views.any
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        images.view(2, -1)


@pytest.mark.parametrize(("name", "views"), [("views", True), ("convnet", False)])
def test_only_models_that_view_pay_for_it(name, views):
    assert Problem(FACTORED[name], victims=1, restarts=1, batch=1).seen.views is views
