"""What an audit leaves of its user's model, loss and process: everything as it was."""

from __future__ import annotations

import copy
import threading
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacker.attacks import build_attack
from attacker.audit.audit import audit
from attacker.audit.inputs.tape_source import TapeSource
from attacker.audit.settings import AuditSettings
from attacker.gradients.uncompared_parameters import settled
from attacker.model_copy import ModelCopyError
from attacker.victim import Victim
from tests.attacker import tiny
from tests.attacker.taped_federation import tape_federation

SPEC = tiny.inputs()
HELD: list[nn.Module] = []
"""The model of the app, as a process that trains and audits has it."""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(4), nn.Dropout(0.2))
        self.gate = nn.Hardsigmoid(inplace=True)
        self.head = nn.LazyLinear(10)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gate(self.body(x)).flatten(1))


def attributes(model: nn.Module) -> dict[str, object]:
    """Every attribute of every layer: tensors by value, version, flags and address; everything else by identity."""
    found: dict[str, object] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            place = f"{name}.{key}"
            found[place] = (id(value), repr(value) if isinstance(value, bool | int | float | str | dict) else None)
            tensors = value.items() if isinstance(value, dict) else [(key, value)]
            for inner, one in tensors:
                if isinstance(one, Tensor):
                    bits = one.detach().clone().double().sum().item(), one._version, one.requires_grad, one.data_ptr()
                    found[f"{place}.{inner}"] = (*bits, one.dtype, one.grad if one.grad is None else id(one.grad))
    return found


def held() -> nn.Module:
    """A factory that gives the very model of the app, as nobody should write it."""
    return HELD[-1]


@pytest.fixture
def model():
    torch.manual_seed(2)
    made = Net()
    made(torch.rand(2, 1, 8, 8))
    made.train()
    made.body[0].weight.requires_grad_(False)
    made.body[3].eval()
    made.head(torch.rand(1, made.head.in_features)).sum().backward()
    HELD.append(made)
    yield made
    HELD.clear()


@pytest.mark.parametrize("spec", ["inverting-gradients:iterations=3", "dlg:iterations=3", "layerwise-inversion"])
def test_attacks_leave_every_attribute_of_a_model_in_training_as_it_was(model, spec):
    before, criterion = attributes(model), nn.CrossEntropyLoss(weight=torch.linspace(0.5, 2, 10))
    weight = criterion.weight
    inputs = replace(tiny.inputs(side=8), classes=10)
    victim = Victim(model=model, inputs=inputs, loss=criterion if "dlg" not in spec else None)
    trained = replace(victim, model=copy.deepcopy(model).requires_grad_(True))
    seen = tiny.observe(trained, tiny.images(inputs, 1, dtype=torch.float32), [1])
    build_attack(spec)(victim, [seen], generator=torch.Generator().manual_seed(0), labels=[torch.tensor([1])])
    assert attributes(model) == before
    assert criterion.weight is weight
    assert weight.dtype == torch.float32


def test_an_audit_in_this_process_leaves_model_generator_and_threads_as_they_were(tmp_path, model, monkeypatch):
    monkeypatch.setattr(nn.Module, "load_state_dict", refused_for(model), raising=True)
    taped = tape_federation(tmp_path, model="tests.attacker.audit.test_own_model:held", clients=1, rounds=1)
    torch.set_num_threads(2)
    try:
        before, drawn = attributes(model), torch.get_rng_state()
        settings = AuditSettings(attacks=("inverting-gradients:iterations=2",), victims=1, threads=1)
        audit([TapeSource(tape=taped.tape)], settings, out=tmp_path / "audit")
        assert attributes(model) == before
        assert torch.equal(torch.get_rng_state(), drawn)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def refused_for(model: nn.Module):
    """`load_state_dict` for every model but this one."""
    own = nn.Module.load_state_dict

    def load(self, *arguments, **named):
        assert self is not model, "somebody loads weights into the app's model"
        return own(self, *arguments, **named)

    return load


def test_victims_that_are_adapted_share_the_one_copy():
    victim = Victim(model=tiny.mlp(SPEC), inputs=SPEC)
    assert replace(victim, name="other").model is victim.model
    fixed, _ = settled(victim, tiny.observe(victim, tiny.images(SPEC, 1, dtype=torch.float32), [1]))
    assert fixed.model is victim.model


class Locked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.lock = nn.Linear(36, 4), threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


def test_a_model_that_cannot_be_copied_is_refused_and_the_reason_told():
    with pytest.raises(ModelCopyError) as told:
        Victim(model=Locked(), inputs=SPEC)
    assert "the model Locked cannot be copied: TypeError" in str(told.value)
    assert "Keep open files, locks" in str(told.value)


def test_a_copy_that_still_runs_the_model_itself_is_no_copy():
    model = tiny.mlp(SPEC)
    model.forward = lambda x: model[3](model[2](model[1](x.flatten(1))))
    with pytest.raises(ModelCopyError, match=r"its copy still uses '[13]\.(weight|bias)' of the model itself"):
        Victim(model=model, inputs=SPEC)


def test_layers_that_keep_what_they_computed_are_copied():
    model = nn.Sequential(nn.Flatten(), nn.utils.parametrizations.spectral_norm(nn.Linear(36, 4)))
    model(torch.rand(1, 1, 6, 6))
    model.kept = model(torch.rand(1, 1, 6, 6))
    assert Victim(model=model, inputs=SPEC).model is not model


def test_a_victim_says_which_loss_it_replays_and_which_labels_that_takes():
    model = tiny.mlp(SPEC)
    images, labels = tiny.images(SPEC, 2, dtype=torch.float32), torch.tensor([1, 3])
    for loss in (None, F.cross_entropy, nn.CrossEntropyLoss()):
        victim = Victim(model=model, inputs=SPEC, loss=loss)
        assert victim.minimises_cross_entropy
        torch.testing.assert_close(victim.training_loss(images, labels), F.cross_entropy(model(images), labels))
    several = Victim(model=model, inputs=SPEC, loss=nn.BCEWithLogitsLoss())
    assert (several.label_numbers, several.minimises_cross_entropy) == (4 + 2**4, False)
    rows = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 1]]).float()
    expected = F.binary_cross_entropy_with_logits(model(images), rows)
    torch.testing.assert_close(several.training_loss(images, torch.tensor([1, 4 + 0b1001])), expected)
