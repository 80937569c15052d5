"""Adam and its kind are seen in an update; SGD, whatever is done to it, is not accused."""

from __future__ import annotations

import copy

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from fl_precode.tape.optimiser_traces import optimiser_trace

DIGITS = load_digits()
X = torch.tensor(DIGITS.images / 16, dtype=torch.float32)[:, None]
Y = torch.tensor(DIGITS.target)

ADAM = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.001),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.001),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.0001),  # its first step is ten times that
}
SGD = {
    "plain": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "decayed": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5, nesterov=True, weight_decay=0.01),
}


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.out = nn.BatchNorm2d(8), nn.Linear(8, 10)

    def forward(self, x):
        hidden = F.relu(self.norm(self.first(x)))
        return self.out((hidden + F.relu(self.second(hidden))).mean((2, 3)))


MODELS = {
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
    "smooth": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.Sigmoid(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)
    ),
    "cnn": lambda: nn.Sequential(nn.Conv2d(1, 12, 5, 2, 2), nn.Sigmoid(), nn.Flatten(), nn.Linear(192, 10)),
    "residual": Residual,
}


def trained(build, optimiser, steps, batch=4, seed=0):
    """What training on real images adds to the weights."""
    torch.manual_seed(seed)
    model = build().train()
    before = copy.deepcopy(dict(model.named_parameters()))
    work = optimiser(model.parameters())
    own = torch.randperm(len(X))[: 3 * batch]
    for _ in range(steps):
        chosen = own[torch.randperm(len(own))[:batch]]
        work.zero_grad()
        F.cross_entropy(model(X[chosen]), Y[chosen]).backward()
        work.step()
    return {name: (value - before[name]).detach() for name, value in model.named_parameters()}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("optimiser", ADAM)
def test_one_step_of_adam_is_seen_with_its_learning_rate(model, optimiser):
    found = optimiser_trace(trained(MODELS[model], ADAM[optimiser], 1), steps=1, learning_rate=None)
    assert found.optimiser == "adam"
    assert found.learning_rate == pytest.approx(0.001, rel=0.15)
    assert "Adam" in found.evidence


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("steps", [2, 5])
@pytest.mark.parametrize("known", [True, False])
def test_several_steps_of_adam_are_seen(model, steps, known):
    update = trained(MODELS[model], ADAM["adam"], steps)
    found = optimiser_trace(update, steps=steps if known else None, learning_rate=0.001 if known else None)
    assert found.optimiser == "adam"
    assert (found.learning_rate == pytest.approx(0.001, rel=0.2)) if known else True


def pruned(value):
    return torch.where(value.abs() >= value.abs().quantile(0.9), value, 0.0)


def rounded(levels):
    def change(value):
        scale = value.abs().max() / levels
        return (value / scale + torch.rand(value.shape, generator=torch.Generator().manual_seed(1))).floor() * scale

    return change


def noisy(value):
    return value + value.std() * torch.randn(value.shape, generator=torch.Generator().manual_seed(1))


CHANGES = {
    "as it is": lambda value: value,
    "pruned": pruned,
    "8 bit": rounded(127),
    "1 bit": rounded(1),
    "noise": noisy,
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("optimiser", SGD)
@pytest.mark.parametrize("change", CHANGES)
def test_sgd_is_not_accused_whatever_is_done_to_its_update(model, optimiser, change):
    for steps in (1, 2, 5, 20):
        for batch in (1, 16):
            update = trained(MODELS[model], SGD[optimiser], steps, batch, seed=steps)
            sent = {name: CHANGES[change](value) if value.numel() > 1 else value for name, value in update.items()}
            found = optimiser_trace(sent, steps=None, learning_rate=None)
            assert found is None or found.optimiser is None, found


def test_signs_are_said_to_be_adam_or_signs():
    sent = {name: 0.01 * value.sign() for name, value in trained(MODELS["mlp"], SGD["plain"], 1).items()}
    found = optimiser_trace(sent, steps=1, learning_rate=0.1)
    assert found.optimiser == "adam"
    assert "or signs alone" in found.evidence
    assert "announced 0.1" in found.evidence


def of_the_head(update):
    return {name: value for name, value in update.items() if name.startswith("5.")}


@pytest.mark.parametrize("optimiser", ADAM)
def test_one_step_of_adam_on_a_head_alone_is_seen(optimiser):
    """As where a vision transformer is fine-tuned: its one matrix and its bias moved by the same amount."""
    found = optimiser_trace(of_the_head(trained(MODELS["smooth"], ADAM[optimiser], 1)), steps=1, learning_rate=None)
    assert found.optimiser == "adam"
    assert found.learning_rate == pytest.approx(0.001, rel=0.15)


@pytest.mark.parametrize("optimiser", SGD)
@pytest.mark.parametrize("change", CHANGES)
def test_sgd_on_a_head_alone_is_not_accused(optimiser, change):
    for steps in (1, 5):
        for batch in (1, 16):
            update = of_the_head(trained(MODELS["smooth"], SGD[optimiser], steps, batch, seed=steps))
            found = optimiser_trace({n: CHANGES[change](v) for n, v in update.items()}, steps=None, learning_rate=None)
            assert found is None or found.optimiser is None, found


def test_rounding_by_layer_is_said_and_is_no_adam():
    sent = {name: rounded(1)(value) for name, value in trained(MODELS["smooth"], SGD["plain"], 1, 16).items()}
    assert "were rounded" in optimiser_trace(sent, steps=1, learning_rate=0.1).evidence


@pytest.mark.parametrize(
    "update",
    [
        {},
        {"weight": torch.randn(10, 64), "bias": torch.randn(10)},
        {"a": torch.zeros(30, 30), "b": torch.zeros(30, 30)},
        {"a": torch.empty(0, 4), "scale": torch.tensor(1.0)},
        {"a": torch.full((30, 30), float("nan")), "b": torch.randn(30, 30)},
    ],
    ids=["nothing", "one layer", "no change", "no entries", "NaN"],
)
def test_of_too_little_nothing_is_said(update):
    assert optimiser_trace(update, steps=1, learning_rate=0.1) is None


def test_half_precision_hides_nothing():
    model = MODELS["mlp"]()
    sent = trained(lambda: copy.deepcopy(model), ADAM["adam"], 1)
    halved = {
        name: (value + sent[name]).detach().half().float() - value.detach().half().float()
        for name, value in model.named_parameters()
    }
    assert optimiser_trace(halved, steps=1, learning_rate=None).optimiser == "adam"
