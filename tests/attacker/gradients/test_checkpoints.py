"""Checkpointed functions are replayed at the weights of the update, not at those of the model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import checkpoint

from attacker.attacks import build_attack
from attacker.gradients.checkpoints import without_checkpoints
from attacker.gradients.replay import Replay
from tests.attacker import tiny

SPEC = tiny.inputs()


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.a, self.b, self.c, self.reentrant = nn.Linear(36, 9), nn.Linear(9, 9), nn.Linear(9, 4), reentrant

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return self.c(checkpoint.checkpoint(self.block, flat, use_reentrant=self.reentrant))

    def block(self, x: Tensor) -> Tensor:
        return torch.tanh(self.b(torch.sigmoid(self.a(x))))


class Plain(Checkpointed):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.block(x.flatten(1)))


def other_weights(model):
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for value in changed.parameters():
            value.mul_(0.5).add_(0.1)
    return changed


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradients_are_those_at_the_weights_that_were_sent(reentrant):
    victim = tiny.victim(Checkpointed(reentrant=reentrant), SPEC)
    sent = other_weights(victim.model)
    x, y = tiny.images(SPEC, 2), torch.tensor([1, 3])
    weights = {name: value.detach().requires_grad_(True) for name, value in sent.named_parameters()}
    loss = Replay(victim, weights, {}).loss(weights, x, y, ())
    found = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
    expected = torch.autograd.grad(F.cross_entropy(sent.c(sent.block(x.flatten(1))), y), list(sent.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_a_search_matches_a_checkpointed_model_as_the_same_model_without():
    model = Checkpointed(reentrant=False)
    seen = tiny.observe(tiny.victim(other_weights(model), SPEC), tiny.images(SPEC, 1), [2])
    attack = build_attack("inverting-gradients:iterations=20")
    (found,) = attack(tiny.victim(model, SPEC), [seen], generator=torch.Generator().manual_seed(0))
    assert found.matching_loss < found.starting_loss
    checkpointed = found.matching_loss
    plain = Plain(reentrant=False)
    plain.load_state_dict(model.state_dict())
    (again,) = attack(tiny.victim(plain, SPEC), [seen], generator=torch.Generator().manual_seed(0))
    assert again.matching_loss == pytest.approx(checkpointed, rel=1e-6)


def test_checkpointing_is_back_afterwards_whatever_happens():
    own = checkpoint.CheckpointFunction
    block = without_checkpoints()
    block.__enter__()
    assert checkpoint.CheckpointFunction is not own
    assert not block.__exit__(RuntimeError, RuntimeError("on purpose"), None)
    assert checkpoint.CheckpointFunction is own
