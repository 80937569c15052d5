"""The undefended control is what the reference clients would have sent without the defence, to the last digit."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from attacker.audit.federations.undefended_control import base_names, open_control, why_no_control, write_control
from attacker.audit.inputs.tape_source import TapeSource, open_subject
from attacker.reasons import because
from fl_precode.defences.registry import apply_defence
from fl_precode.local_training import batch_gradient, local_training
from fl_precode.models.input_spec import InputSpec
from fl_precode.tape import Tape, TapeHeader
from tests.attacker.audits import audit_tapes
from tests.attacker.taped_federation import tape_federation

LOCAL = {"local_steps": 3, "learning_rate": 0.05, "momentum": 0.5, "weight_decay": 0.01}


def controlled(folder, **settings):
    taped = tape_federation(folder, rounds=2, clients=2, **settings)
    subject = open_subject(TapeSource(tape=taped.tape))
    entries = subject.tape.entries
    assert why_no_control(subject, entries) is None
    write_control(subject, entries, folder / "control")
    return subject, open_control(subject, folder / "control")


def base_model(subject, seen):
    """The undefended model at the weights of the tape, by the layer's own names."""
    model = deepcopy(subject.undefended)
    sent = {name.replace(".layer.", "."): value for name, value in seen.parameters.items()}
    model.load_state_dict({name: sent[name] for name in model.state_dict()})
    return model


@pytest.mark.parametrize("defence", ["precode", "cvb", "dropout", "noise:std=0.1", "precode+clip:max_norm=1e-3"])
def test_gradients_are_those_of_the_clients_without_the_defence(tmp_path, defence):
    subject, control = controlled(tmp_path, model="lenet", defence=defence, batch_size=2)
    assert control.defence == control.tape.header.defence == control.tape.header.protocol.defence == "none"
    assert len(control.tape.entries) == 4
    for entry, plain in zip(subject.tape.entries, control.tape.entries, strict=True):
        seen, found = subject.tape.load(entry), control.tape.load(plain)
        truth = subject.truth.truth(entry)
        batch = subject.victim.inputs.normalise(truth.images), truth.labels
        expected, _ = batch_gradient(base_model(subject, seen), batch)
        assert expected.keys() == found.update.keys()
        assert all(torch.equal(expected[name], found.update[name]) for name in expected)
        assert (found.round, found.node, found.batch_size) == (seen.round, seen.node, 2)


def test_local_training_is_repeated_step_by_step(tmp_path):
    subject, control = controlled(tmp_path, model="mlp", defence="precode", local=LOCAL)
    entry = subject.tape.entries[0]
    seen, found = subject.tape.load(entry), control.tape.load(control.tape.entries[0])
    model = base_model(subject, seen)
    before = {name: value.clone() for name, value in model.named_parameters()}
    steps = subject.truth.steps(entry)
    assert len(steps) == 3
    batches = [(subject.victim.inputs.normalise(step.images), step.labels) for step in steps]
    local_training(model, batches, **{name: value for name, value in LOCAL.items() if name != "local_steps"})
    assert found.kind == "weights"
    for name, trained in model.named_parameters():
        assert torch.equal(trained - before[name], found.update[name])


def test_the_truth_of_one_round_is_that_of_its_steps(tmp_path):
    taped = tape_federation(tmp_path, batch_size=2, rounds=1)
    truth = open_subject(TapeSource(tape=taped.tape)).truth
    (node, number), (images, labels) = next(iter(taped.used.items()))
    entry = next(one for one in Tape(taped.tape).entries if (one.node, one.round) == (node, number))
    (step,) = truth.steps(entry)
    assert torch.equal(step.images, images)
    assert truth.classes(entry) == tuple(sorted(set(labels.tolist())))
    with pytest.raises(ValueError, match="the run had rounds 1 to 1"):
        truth.steps(replace(entry, round=2))


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Sigmoid(), nn.Conv2d(4, 4, 3))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 36, 5))

    def forward(self, x):
        return self.head(self.body(x))


@pytest.mark.parametrize("defence", ["precode", "precode:before=head", "precode+dropout", "cvb+precode"])
def test_names_of_a_defended_model_lead_back_to_the_undefended_one(defence):
    inputs = InputSpec(channels=1, height=8, width=8, classes=5, mean=(0.0,), std=(1.0,))
    plain = Nested()
    defended = apply_defence(defence, plain, inputs, seed=1)
    names = base_names(defended)
    assert sorted(names.values()) == sorted(plain.state_dict())
    state = defended.state_dict()
    assert all(torch.equal(state[name], plain.state_dict()[base]) for name, base in names.items())


def test_why_there_is_none(tmp_path):
    plain = tape_federation(tmp_path / "plain", rounds=1)
    subject = open_subject(TapeSource(tape=plain.tape))
    assert why_no_control(subject, subject.tape.entries) == because("control-needs-defence")
    dark = tape_federation(tmp_path / "dark", rounds=1, defence="precode", evaluation=False)
    subject = open_subject(TapeSource(tape=dark.tape))
    assert why_no_control(subject, subject.tape.entries) == because("control-needs-truth")
    header = TapeHeader(model="mlp", kind="gradient", inputs=subject.victim.inputs)
    foreign = tape_federation(tmp_path / "foreign", rounds=1, header=header)
    subject = open_subject(TapeSource(tape=foreign.tape))
    assert why_no_control(subject, subject.tape.entries) == because("control-needs-defence.unknown")


def test_a_control_is_a_federation_of_the_record_and_its_images_are_reconstructed(tmp_path):
    taped = tape_federation(tmp_path, model="mlp", defence="noise:std=0.5", rounds=1, clients=3)
    attacks = ["first-layer", "ignore:iterations=2"]
    record = audit_tapes([TapeSource(tape=taped.tape)], out=tmp_path / "a", attacks=attacks, victims=3, control=True)
    defended, control = record.federations
    assert (defended.control_of, control.control_of, control.defence) == (None, "f1", "none")
    assert (control.id, control.tape, control.settings["defence"]) == ("f1-control", defended.tape, "none")
    assert control.parameters == control.parameters_undefended
    by = {(one.federation, one.attack): one for one in record.summaries}
    assert by["f1-control", "first-layer"].successes == 3
    # An attack that answers defences says nothing about the control.
    assert ("f1-control", "ignore:iterations=2") not in by
    assert {one.federation for one in record.victims} == {"f1", "f1-control"}
    without = audit_tapes([TapeSource(tape=taped.tape)], out=tmp_path / "b", attacks=attacks, victims=3)
    assert [one.id for one in without.federations] == ["f1"]
