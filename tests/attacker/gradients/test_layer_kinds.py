"""A layer of anyone's own is registered, and its models are attacked from factors from then on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from attacker.gradients.distances import Elements, cosine_distance
from attacker.gradients.double_backward import LoopProducts
from attacker.gradients.fedavg.surrogate import surrogate_products
from attacker.gradients.ghost import layer_kinds
from attacker.gradients.ghost.ghost import FactoredProducts, why_not_factored
from attacker.gradients.ghost.layer_kinds import LayerKind, register_layer
from attacker.gradients.one_step import elementwise_products, gradient_products, weights_pay
from fl_precode import Protocol
from fl_precode.models.input_spec import InputSpec
from tests.attacker.gradients.test_products import TOLERANCE, Problem
from tests.attacker.gradients.test_unrolled_sgd import Client
from tests.attacker.gradients.test_weights_by_victim import own_weights


class Gain(nn.Module):
    """Scales every channel, as timm's LayerScale does behind attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.linspace(0.5, 1.5, width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class GainKind(LayerKind[Gain]):
    parameters = ("gamma",)

    def gradients(self, layer: Gain, received: Tensor, delta: Tensor) -> Mapping[str, Tensor]:
        return {"gamma": (received * delta).reshape(len(delta), -1, delta.shape[-1]).sum(1)}


class WrongKind(GainKind):
    def gradients(self, layer: Gain, received: Tensor, delta: Tensor) -> Mapping[str, Tensor]:
        return {"gamma": (received + delta).flatten(1, -2).sum(1)}


class ShapelessKind(GainKind):
    def gradients(self, layer: Gain, received: Tensor, delta: Tensor) -> Mapping[str, Tensor]:
        return {"gamma": (received * delta).flatten(1).sum(1)}


def gained(spec: InputSpec) -> nn.Module:
    return nn.Sequential(nn.Conv2d(spec.channels, 2, 2), Gain(spec.width - 1), nn.Tanh(), nn.Flatten(),
                         nn.Linear(2 * (spec.height - 1) * (spec.width - 1), spec.classes))  # fmt: skip


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setattr(layer_kinds, "_KINDS", dict(layer_kinds._KINDS))


@pytest.fixture
def problem() -> Problem:
    return Problem(gained, victims=2, restarts=2, batch=2)


@pytest.mark.parametrize("name", [Gain, f"{Gain.__module__}.Gain"])
def test_a_registered_layer_is_attacked_from_factors(problem, name):
    assert "Gain) is no plain layer of a known kind" in (why_not_factored(problem.victim.model, problem.seen) or "")
    assert not isinstance(problem.choose(), FactoredProducts)
    register_layer(name)(GainKind)
    chosen = problem.choose()
    assert isinstance(chosen, FactoredProducts)
    problem.check(chosen)
    assert weights_pay(problem.victim.model, problem.seen)


def test_each_victim_has_weights_of_its_own(problem):
    register_layer(Gain)(GainKind)
    replays = own_weights(problem)
    fast = gradient_products(replays, problem.targets, problem.seen, batch_size=2)
    assert isinstance(fast, FactoredProducts)
    slow = LoopProducts(replays, problem.targets)
    for products, other, first in ((fast, slow, 0), (fast.keep([1]), slow.keep([1]), 1)):
        distances = [
            cosine_distance(one(problem.candidates[first:], problem.labels[first:])) for one in (products, other)
        ]
        torch.testing.assert_close(*distances, atol=TOLERANCE, rtol=TOLERANCE)


def test_kept_elements_and_surrogate_weights_take_it_too(problem):
    register_layer(Gain)(GainKind)
    targets = [{name: value * (value > 0) for name, value in one.items()} for one in problem.targets]
    kept = elementwise_products(problem.replay, targets, problem.seen, batch_size=2, elements=Elements(kept=True))
    assert isinstance(kept, FactoredProducts)
    client = Client(gained, 2, Protocol(local_steps=2, batch_size=1, learning_rate=0.5), [(0,), (1,)])
    assert surrogate_products(client.replay, client.observations, client.seen).way == "factored"


@pytest.mark.parametrize("kind", [WrongKind, ShapelessKind])
def test_a_kind_that_is_wrong_is_found_out(problem, kind):
    register_layer(Gain)(kind)
    chosen = problem.choose()
    assert not isinstance(chosen, FactoredProducts)
    problem.check(chosen)


def test_a_layer_has_one_kind():
    register_layer(Gain)(GainKind)
    with pytest.raises(ValueError, match="without a kind, got Gain, registered already"):
        register_layer(Gain, nn.Bilinear)(WrongKind)


def test_a_layer_is_added_as_the_page_says(problem):
    page = Path(__file__).resolve().parents[3] / "docs" / "how-to" / "adding-a-layer.md"
    (program,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    exec(program, {"LayerScale": Gain})
    assert isinstance(problem.choose(), FactoredProducts)
