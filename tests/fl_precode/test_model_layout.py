"""Recorded arrays are matched with the model's tensors, whatever wrappers, orders and parts apps send."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fl_precode.models.layout import ModelLayout


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(16, 3)
        self.register_buffer("mean", torch.zeros(1))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


LAYOUT = ModelLayout.of(Net())
STATE = shapes(Net())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"_module.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: name.replace("conv.", "conv._orig_mod."),
        lambda name: f"_forward_module.model.{name}",
        lambda name: f"net.backbone.{name}",
    ],
    ids=["DataParallel", "compile", "Opacus", "both", "one layer", "Fabric and a prefix", "a prefix"],
)
def test_wrapped_names_are_those_of_the_model(wrap):
    found = LAYOUT.match({wrap(name): shape for name, shape in STATE.items()})
    assert found is not None
    assert {wrap(own): own for own in STATE} == dict(found.names)


def test_a_model_that_is_itself_behind_a_prefix_is_found():
    class Lit(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = Net()

    found = ModelLayout.of(Lit()).match(STATE)
    assert found is not None
    assert found.how == "prefix"
    assert found.names["fc.weight"] == "model.fc.weight"


@pytest.mark.parametrize("name", ["{}", "arr_{}", "param{}"])
@pytest.mark.parametrize("first", [0, 1])
def test_arrays_without_names_are_taken_in_the_order_of_the_state_dict(name, first):
    given = {name.format(number): shape for number, shape in enumerate(STATE.values(), start=first)}
    shuffled = dict(sorted(given.items(), key=lambda item: item[0][::-1]))
    found = LAYOUT.match(shuffled)
    assert found is not None
    assert found.how == "order"
    assert [found.names[one] for one in given] == list(STATE)


def test_without_names_parameters_alone_and_trained_ones_alone_are_understood():
    own = [name for name, _ in Net().named_parameters()]
    found = LAYOUT.match({str(number): STATE[name] for number, name in enumerate(own)})
    assert found is not None
    assert list(found.names.values()) == own
    frozen = Net()
    frozen.conv.requires_grad_(False)
    trained = [name for name in own if not name.startswith("conv")]
    found = ModelLayout.of(frozen).match({str(number): STATE[name] for number, name in enumerate(trained)})
    assert found is not None
    assert list(found.names.values()) == trained


def test_a_part_of_the_model_is_a_part_and_more_than_the_model_is_set_aside():
    part = LAYOUT.match({name: STATE[name] for name in ("conv.weight", "conv.bias")})
    assert part is not None
    assert part.unknown == ()
    more = LAYOUT.match({**STATE, "control.fc.weight": (3, 16)})
    assert more is not None
    assert more.unknown == ("control.fc.weight",)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"fc.weight": (3, 17)},
        {"other.weight": (3, 16)},
        {"fc.weight": (3, 16), "extra": (1,)},
        {"0": (3, 16), "1": (3,)},
        {"mean": (1,)},
        {"0": (4, 1, 3, 3), "2": (4,)},
    ],
    ids=["nothing", "shape", "name", "part and more", "order of another", "buffers only", "a gap"],
)
def test_another_model_is_another_model(given):
    assert LAYOUT.match(given) is None


def test_tied_weights_are_one_parameter_with_two_names():
    layout = ModelLayout.of(Tied())
    assert "second.weight" in layout.tied
    assert "second.weight" not in layout.parameters
    found = layout.match(shapes(Tied()))
    assert found is not None
    assert len(found.names) == 4


def test_roles_are_the_models_own():
    assert LAYOUT.classifier_bias == "fc.bias"
    assert LAYOUT.classifier_weight == "fc.weight"
    assert "mean" not in LAYOUT.parameters
    assert "bn.running_mean" not in LAYOUT.parameters
    frozen = Net()
    frozen.fc.requires_grad_(False)
    assert "fc.weight" not in ModelLayout.of(frozen).trained
