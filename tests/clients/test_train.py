"""The client's local step."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fl_precode
from clients.app import _noise_seed
from clients.train import batch_gradient, local_training, training_loss


def small_model():
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def batch(n=4):
    return torch.randn(n, 1, 2, 3), torch.arange(n) % 3


def test_without_a_defence_the_gradient_is_plain_autograd():
    model, (inputs, labels) = small_model(), batch()
    gradients, loss = batch_gradient(model, (inputs, labels))
    plain = F.cross_entropy(model(inputs), labels)
    assert loss == plain.item()
    expected = torch.autograd.grad(plain, list(model.parameters()))
    for (name, _), value in zip(model.named_parameters(), expected, strict=True):
        assert torch.equal(gradients[name], value)


def test_parameters_the_loss_does_not_touch_get_zeros():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = small_model(), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    gradients, _ = batch_gradient(Unused(), batch())
    assert not gradients["spare.weight"].any()
    assert gradients["used.1.weight"].any()


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"weight_decay": 0.1}], ids=str)
def test_without_a_defence_local_training_is_sgd(options):
    model = small_model()
    twin = small_model()
    twin.load_state_dict(model.state_dict())
    batches = [batch(), batch(2), batch(3)]
    local_training(model, batches, learning_rate=0.3, **options)
    optimiser = torch.optim.SGD(twin.parameters(), lr=0.3, **options)
    for inputs, labels in batches:
        optimiser.zero_grad()
        F.cross_entropy(twin(inputs), labels).backward()
        optimiser.step()
    for name, value in twin.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_the_bottlenecks_penalty_is_part_of_the_loss():
    inputs, labels = batch()
    weak, strong = (fl_precode.extend(small_model(), inputs, latent=4, beta=beta) for beta in (0.0, 10.0))
    strong.load_state_dict(weak.state_dict())
    losses = []
    for model in (weak, strong):
        torch.manual_seed(1)
        losses.append(training_loss(model, inputs, labels).item())
    assert losses[1] > losses[0]


def test_every_client_and_round_has_noise_of_its_own():
    seeds = {_noise_seed(seed, part, rnd) for seed in range(4) for part in range(8) for rnd in range(1, 9)}
    assert len(seeds) == 4 * 8 * 8
    torch.manual_seed(_noise_seed(2**32, 2**15, 10**6))  # large values still fit torch's 64 bits
