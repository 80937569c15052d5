"""The client's local step."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fl_precode
from clients.app import _noise_seed
from clients.train import defended_gradient, defended_training
from fl_precode.defences.registry import gradient_defence
from fl_precode.local_training import batch_gradient, local_training
from fl_precode.objective import training_loss


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


def seeded_generator():
    return torch.Generator().manual_seed(3)


def test_fedsgd_sends_the_defended_gradient():
    model, one = small_model(), batch()
    plain, loss = batch_gradient(model, one)
    same, same_loss = defended_gradient(model, one, None, seeded_generator())
    assert loss == same_loss
    assert all(torch.equal(same[name], plain[name]) for name in plain)
    defence = gradient_defence("soteria+noise:std=0.1")
    sent, _ = defended_gradient(model, one, defence, seeded_generator())
    expected = defence(plain, model=model, batch=one, generator=seeded_generator())
    assert all(torch.equal(sent[name], expected[name]) for name in plain)


def test_what_belongs_to_a_step_changes_every_step():
    model, twin = small_model(), small_model()
    twin.load_state_dict(model.state_dict())
    batches = [batch(), batch(2), batch(3)]
    defence = gradient_defence("soteria:share=0.5")
    defended_training(model, batches, defence, seeded_generator(), learning_rate=0.3)
    generator = seeded_generator()
    for one in batches:
        gradients, _ = batch_gradient(twin, one)
        gradients = defence(gradients, model=twin, batch=one, generator=generator)
        with torch.no_grad():
            for name, value in twin.named_parameters():
                value -= 0.3 * gradients[name]
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)


def test_what_belongs_to_the_update_changes_it_once():
    model, plain = small_model(), small_model()
    plain.load_state_dict(model.state_dict())
    received = {name: value.clone() for name, value in model.named_parameters()}
    batches = [batch(), batch(2), batch(3)]
    defence = gradient_defence("clip:max_norm=0.01+noise:std=0.5")
    loss = defended_training(model, batches, defence, seeded_generator(), learning_rate=0.3)
    assert loss == local_training(plain, batches, learning_rate=0.3)
    update = {name: (value - received[name]).detach() for name, value in plain.named_parameters()}
    expected = defence(update, generator=seeded_generator())
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, received[name] + expected[name])


def test_steps_and_update_are_defended_together():
    model, twin = small_model(), small_model()
    twin.load_state_dict(model.state_dict())
    received = {name: value.detach().clone() for name, value in model.named_parameters()}
    both = "dp:max_norm=1,noise_multiplier=0+prune:share=0.75"
    defended_training(model, [batch(), batch(3)], gradient_defence(both), seeded_generator(), learning_rate=0.3)
    torch.manual_seed(0)
    changed = {name: value != received[name] for name, value in model.named_parameters()}
    for name, mask in changed.items():
        assert int(mask.sum()) == mask.numel() - round(0.75 * mask.numel()), name


def test_buffers_are_left_as_training_made_them():
    def normalised():
        return nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(4, 3))

    model, plain = normalised(), normalised()
    plain.load_state_dict(model.state_dict())
    one = batch()
    defended_training(
        model, [one], gradient_defence("noise:std=1+quantise:bits=2"), seeded_generator(), learning_rate=0.1
    )
    local_training(plain, [one], learning_rate=0.1)
    for name, value in model.named_buffers():
        assert torch.equal(value, dict(plain.named_buffers())[name]), name
    assert not torch.equal(model[0].weight, plain[0].weight)
    assert model[1].num_batches_tracked.item() == 1


def test_local_adam_steps_by_the_size_of_the_learning_rate():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    before = model[1].weight.detach().clone()
    batch = (torch.rand(2, 1, 2, 2) + 0.5, torch.tensor([0, 1]))
    defended_training(model, [batch], None, torch.Generator(), learning_rate=0.01, optimiser="adam")
    # The first step of Adam is the learning rate in every entry with a gradient, whatever its size.
    moved = (model[1].weight.detach() - before).abs()
    assert torch.allclose(moved, torch.full_like(moved, 0.01), atol=1e-5)


@pytest.mark.parametrize("defence", ["noise:std=0.1", "laplace:std=0.1", "dp:max_norm=1,noise_multiplier=1", "sign"])
@pytest.mark.parametrize("protocol", ["fedsgd", "fedavg"])
def test_a_defence_changes_what_is_trained_and_moves_no_frozen_layer(protocol, defence):
    model, chain = small_model(), gradient_defence(defence)
    model[1].requires_grad_(False)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    if protocol == "fedsgd":
        sent, _ = defended_gradient(model, batch(), chain, generator)
        moved = {name: value for name, value in sent.items() if value.any()}
        assert sent.keys() == before.keys()
    else:
        defended_training(model, [batch()], chain, generator, learning_rate=0.1)
        moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert set(moved) == {"3.weight", "3.bias"}
