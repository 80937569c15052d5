"""The chain of layers: found where there is one, ended where it ends."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from attacker.analytic.layer_chain import chain
from attacker.analytic.skip_connections import why_bypassed
from attacker.reasons import because
from fl_precode import VariationalBottleneck
from tests.attacker import tiny

SPEC = tiny.inputs(channels=2, side=8)


class Functional(nn.Module):
    """Activations, pooling and flattening without layers of their own."""

    def __init__(self, activation, pool=None, first=True):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.fc = nn.Linear(3 * (16 if pool else 64), 4)
        self._activation, self._pool, self._first = activation, pool, first

    def forward(self, x):
        x = self.conv(x)
        steps = [self._activation, self._pool or (lambda value: value)]
        for step in steps if self._first else steps[::-1]:
            x = step(x)
        return self.fc(x.flatten(1))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.fc = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1), nn.Linear(128, 4)

    def forward(self, x):
        x = torch.tanh(self.one(x))
        return self.fc((x + self.two(x)).flatten(1))


def found(model):
    return chain(tiny.victim(model, SPEC))


def test_a_sequential_model_is_a_chain_of_its_layers():
    model = nn.Sequential(nn.Conv2d(2, 3, 3, stride=2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(27, 4))
    steps = found(model)
    assert steps.ends is None
    assert [step.name for step in steps.steps] == ["0", "1", "2", "3"]
    assert [step.output_shape for step in steps.steps] == [(3, 3, 3), (3, 3, 3), (27,), (4,)]
    assert steps.parameterised() == [0, 3]
    assert steps.steps[0].parameter("weight") == "0.weight"
    assert not any(step.shared for step in steps.steps)


@pytest.mark.parametrize(
    ("activation", "pool", "first", "kinds"),
    [
        (torch.sigmoid, None, True, ["Sigmoid"]),
        (F.relu, None, True, ["ReLU"]),
        (lambda x: F.leaky_relu(x, 0.2), None, True, ["LeakyReLU"]),
        (torch.tanh, lambda x: F.avg_pool2d(x, 2), True, ["Tanh", "AvgPool2d"]),
        (torch.tanh, lambda x: F.avg_pool2d(x, 2), False, ["AvgPool2d", "Tanh"]),
        (torch.sigmoid, lambda x: F.max_pool2d(x, 2), True, ["Sigmoid", "MaxPool2d"]),
        (lambda x: x, None, True, []),
    ],
)
def test_functions_between_layers_are_recognised(activation, pool, first, kinds):
    steps = found(Functional(activation, pool, first))
    assert steps.ends is None
    assert [step.kind for step in steps.steps] == ["Conv2d", *kinds, "Linear"]
    assert all(step.name == "after conv" or step.name.startswith("after after") for step in steps.steps[1:-1])


class Scaled(Functional):
    def forward(self, x):
        return 2 * super().forward(x)


def test_the_chain_ends_at_a_shortcut_and_at_unknown_functions():
    steps = found(Residual())
    assert [step.name for step in steps.steps] == ["one", "after one", "two"]
    assert "'fc' is not what 'two' returned: a shortcut" in steps.ends
    steps = found(Functional(lambda x: x.sin()))
    assert [step.kind for step in steps.steps] == ["Conv2d"]
    assert "no layer stands between" in steps.ends
    scaled = Scaled(torch.tanh)
    scaled.fc = nn.Sequential(scaled.fc, nn.Identity())
    assert "'the output' is not what" in found(scaled).ends


def test_a_map_that_is_smaller_than_any_window_of_pooling_ends_the_chain():
    class Squeezed(nn.Module):
        """One number a channel, as in squeeze-and-excitation, and a function of it that is no layer."""

        def __init__(self):
            super().__init__()
            self.conv, self.pool, self.fc = nn.Conv2d(2, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return self.fc(self.pool(self.conv(x)).sin()).flatten(1)

    steps = found(Squeezed())
    assert [step.name for step in steps.steps] == ["conv", "pool"]
    assert "'fc' is not what 'pool' returned" in steps.ends


def test_a_bottleneck_is_one_layer():
    steps = found(tiny.convnet(SPEC, bottleneck=True))
    assert [step.kind for step in steps.steps] == ["Conv2d", "Sigmoid", "Flatten", "VariationalBottleneck", "Linear"]
    assert steps.ends is None
    assert isinstance(steps.steps[3].module, VariationalBottleneck)
    assert steps.parameterised() == [0, 3, 4]


def test_layers_that_share_weights_are_marked():
    conv = nn.Conv2d(2, 2, 3, padding=1)
    twice = found(nn.Sequential(conv, nn.Tanh(), conv, nn.Flatten(), nn.Linear(128, 4)))
    assert [step.shared for step in twice.steps] == [True, False, True, False, False]
    tied = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1), nn.Flatten(), nn.Linear(128, 4))
    tied[1].weight = tied[0].weight
    assert [step.shared for step in found(tied).steps] == [True, True, False, False]


def test_no_hook_stays_and_no_randomness_is_used():
    model = tiny.convnet(SPEC, bottleneck=True)
    before = torch.random.get_rng_state()
    found(model)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Shortcut(nn.Module):
    """A chain to look at, up to the first Linear layer; the image's features go around it all the same."""

    def __init__(self, weight):
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(128, 8), nn.Linear(8, 4)
        self.around, self.weight = nn.Linear(128, 4), weight

    def forward(self, x):
        features = torch.tanh(self.conv(x)).flatten(1)
        return self.fc2(torch.tanh(self.fc1(features))) + self.weight * self.around(features)


def test_a_shortcut_around_the_chain_shows_in_the_gradient():
    for weight, bypassed in ((1.0, True), (0.0, False)):
        victim = tiny.victim(Shortcut(weight), SPEC)
        steps = chain(victim).steps
        assert [step.name for step in steps[:3]] == ["conv", "after conv", "fc1"]
        reason = why_bypassed(victim, steps[:2], victim.model.fc1)
        assert bool(reason) is bypassed
        assert reason in (None, because("chain-bypassed", name="conv.weight"))


def test_a_bottleneck_is_entered_by_the_chain_alone():
    victim = tiny.victim(tiny.convnet(SPEC, bottleneck=True), SPEC)
    assert why_bypassed(victim, chain(victim).steps[:3], victim.model[3].encoder) is None
