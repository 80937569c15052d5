"""Layers whose kernels torch cannot differentiate twice are attacked like the same layers written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacker.attacks import Outcome, build_attack
from attacker.gradients.distances import cosine_distance
from attacker.gradients.ghost.ghost import FactoredProducts
from attacker.gradients.one_step import gradient_products
from attacker.gradients.replay import Replay
from attacker.gradients.trace import trace
from attacker.victim import Victim
from tests.attacker import tiny


class WrittenOut(nn.Module):
    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.overwrites = inplace

    def forward(self, x: Tensor) -> Tensor:
        found = F.relu6(x + 3) / 6
        return x.copy_(found) if self.overwrites else found


class Gated(nn.Module):
    """A gate in the manner of MobileNetV3's squeeze and excitation."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.conv, self.squeeze = nn.Conv2d(1, 3, 3), nn.Linear(3, 3)
        self.act, self.gate, self.head = nn.Hardswish(), gate, nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(x))
        squeezed = self.squeeze(x.mean((2, 3)))
        weight = self.gate(squeezed)
        # A gate in place changes what it was given, too.
        return self.head((x * weight[:, :, None, None]).amax((2, 3)) + squeezed)


def gated(gate: nn.Module) -> Victim:
    torch.manual_seed(0)
    return Victim(model=Gated(gate).double(), inputs=tiny.inputs(channels=1))


def distance(victim: Victim) -> tuple[Tensor, Tensor, type]:
    """Distance of two candidates from one target, and its gradient."""
    generator = torch.Generator().manual_seed(1)
    weights = {name: one.detach() for name, one in victim.model.named_parameters()}
    target = {name: torch.randn(one.shape, generator=generator).double() for name, one in weights.items()}
    products = gradient_products(Replay(victim, weights, {}), [target], trace(victim), batch_size=1)
    x = torch.randn(1, 2, 1, *victim.inputs.shape, generator=generator).double().requires_grad_(True)
    found = cosine_distance(products(x, torch.tensor([2])))
    (gradient,) = torch.autograd.grad(found.sum(), x)
    return found.detach(), gradient, type(products)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_hard_sigmoid_is_matched_like_the_same_written_out(inplace):
    own, other = distance(gated(nn.Hardsigmoid(inplace))), distance(gated(WrittenOut(inplace)))
    assert inplace or own[2] is other[2] is FactoredProducts
    for value, wanted in zip(own[:2], other[:2], strict=True):
        torch.testing.assert_close(value, wanted, atol=1e-12, rtol=1e-12)


def test_torch_itself_has_no_second_derivative_of_it():
    """When a torch release has one, `attacker.gradients.second_derivatives` need not exchange it."""
    x = torch.zeros(1, requires_grad=True)
    (gradient,) = torch.autograd.grad(F.hardsigmoid(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        torch.autograd.grad(gradient.sum(), x)


def test_an_attack_leaves_the_users_model_as_it_was():
    victim = gated(nn.Hardsigmoid())
    observation = tiny.observe(victim, tiny.images(victim.inputs, 1), [2])
    (found,) = build_attack("inverting-gradients:iterations=2")(
        victim, [observation], generator=torch.Generator().manual_seed(0)
    )
    assert found.outcome is Outcome.ITERATION_LIMIT
    assert not any("forward" in module.__dict__ for module in victim.model.modules())
