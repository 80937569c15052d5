"""Who does not say what clients minimise gets an assumption, with what the classifier's update shows of it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from attacker.audit.inputs.loss_assumed import loss_assumed
from attacker.audit.inputs.tape_source import TapeSource, open_subject
from attacker.audit.inputs.update_facts import assumptions_about
from attacker.victim import Victim
from fl_precode.federation.config import Settings
from fl_precode.loss import described, load_loss
from fl_precode.observation import Observation, Protocol
from fl_precode.tape import TapeHeader
from fl_precode.tape.announced_settings import announced_settings
from fl_precode.tape.notes import with_notes
from tests.attacker import tiny
from tests.attacker.taped_federation import tape_federation

SPEC = tiny.inputs(channels=1, side=8, classes=10)
ONE_STEP = Protocol(name="fedavg", local_steps=1, batch_size=3, learning_rate=0.1, defence="none")


def one_hot(labels):
    return F.one_hot(labels, 10).double()


LOSSES = {
    "cross-entropy": lambda out, y: F.cross_entropy(out, y),
    "class weights": lambda out, y: F.cross_entropy(out, y, weight=torch.linspace(0.5, 2, 10).double()),
    "focal": lambda out, y: ((1 - out.softmax(1)[range(3), y]) ** 2 * F.cross_entropy(out, y, reduction="none")).mean(),
    "smoothed": lambda out, y: F.cross_entropy(out, y, label_smoothing=0.2),
    "binary": lambda out, y: F.binary_cross_entropy_with_logits(out, one_hot(y)),
    "squared": lambda out, y: F.mse_loss(out, one_hot(y)),
}


def client(
    loss, *, sent: str = "weights", steps: int = 1, decay: float = 0.0, bias: bool = True
) -> tuple[Victim, Observation]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, 10, bias=bias)).double()
    images, labels = tiny.images(SPEC, 3, seed=1), torch.tensor([1, 4, 7])
    trained = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=decay)
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    for _ in range(steps):
        trained.zero_grad()
        loss(net(images), labels).backward()
        trained.step()
    change = {name: value.detach() - before[name] for name, value in net.named_parameters()}
    gradient = {name: value.grad.clone() for name, value in net.named_parameters()}
    with torch.no_grad():
        for name, value in net.named_parameters():
            value.copy_(before[name])
    return Victim(model=net, inputs=SPEC), Observation(
        parameters=before,
        buffers={},
        update=change if sent == "weights" else gradient,
        kind=sent,
        batch_size=3,
        protocol=replace(ONE_STEP, local_steps=steps),
        round=1,
        node="1",
    )


@pytest.mark.parametrize("sent", ["weights", "gradient"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
def test_nobody_said_the_loss_and_the_classifier_shows_which_kind_it_is(loss, sent, bias):
    victim, seen = client(LOSSES[loss], sent=sent, bias=bias)
    found = loss_assumed(victim, seen)
    assert found is not None
    assert found.code == "loss"
    other = loss in ("binary", "squared")
    assert ("does not sum to zero over the classes" in found.sentence) == other
    assert ("update sums to zero over the classes" in found.sentence) != other
    assert found.line.startswith('loss = "cross-entropy"  # or')


def test_weight_decay_and_several_steps_do_not_change_what_shows():
    for loss in ("cross-entropy", "squared"):
        _, seen = victim, seen = client(LOSSES[loss], steps=4, decay=1e-2)
        assert ("does not sum to zero" in loss_assumed(victim, seen).sentence) == (loss == "squared")


def test_labels_that_are_smoothed_show_once_the_model_is_sure():
    victim, seen = client(LOSSES["smoothed"], sent="gradient")
    weights = {name: 12 * value for name, value in seen.parameters.items()}
    for name, value in victim.model.named_parameters():
        value.data.copy_(weights[name])
    loss = LOSSES["smoothed"](victim.model(tiny.images(SPEC, 3, seed=1)), torch.tensor([1, 4, 7]))
    gradient = dict(zip(weights, torch.autograd.grad(loss, list(victim.model.parameters())), strict=True))
    found = loss_assumed(victim, replace(seen, parameters=weights, update=gradient))
    assert "labels are smoothed or mixed" in found.sentence


def test_noise_and_other_defences_hide_what_shows():
    victim, seen = client(LOSSES["squared"])
    noisy = {name: value + 0.05 * torch.randn_like(value) for name, value in seen.update.items()}
    for observation in (
        replace(seen, update=noisy),
        replace(seen, protocol=replace(seen.protocol, defence="prune:share=0.5")),
        replace(seen, protocol=replace(seen.protocol, optimiser="adam")),
    ):
        assert "sum to zero" not in loss_assumed(victim, observation).sentence


def test_an_announced_loss_is_no_assumption_and_another_one_is_said():
    victim, seen = client(LOSSES["cross-entropy"])
    told = replace(seen, protocol=replace(seen.protocol, loss="cross-entropy"))
    assert loss_assumed(victim, told) is None
    assert "loss" not in [one.code for one in assumptions_about(victim, [told])]
    named = replace(victim, loss=load_loss("torch.nn:CrossEntropyLoss(label_smoothing=0.1)"))
    assert loss_assumed(named, seen) is None
    assert loss_assumed(named, replace(seen, protocol=replace(seen.protocol, loss=described(named.loss)))) is None
    focal = loss_assumed(victim, replace(seen, protocol=replace(seen.protocol, loss="focal")))
    assert "although 'focal' was announced" in focal.sentence
    (entry,) = assumptions_about(victim, [seen, seen])
    assert (entry.code, entry.updates) == ("loss", 2)


def test_the_record_says_who_named_the_loss(tmp_path):
    tape = tape_federation(tmp_path, rounds=1, clients=1).tape
    assert open_subject(TapeSource(tape=tape)).loss_named_by == "tape"
    assert open_subject(TapeSource(tape=tape, loss="cross-entropy")).loss_named_by == "auditor"
    header = json.loads((tape / "tape.json").read_text())
    for announced in (None, "focal"):
        header["protocol"]["loss"] = announced
        (tape / "tape.json").write_text(json.dumps(header))
        assert open_subject(TapeSource(tape=tape)).loss_named_by == "nobody"
    (tmp_path / "tape.toml").write_text('loss = "torch.nn:CrossEntropyLoss(label_smoothing=0.1)"\n')
    assert open_subject(TapeSource(tape=tape)).loss_named_by == "tape"


def test_one_logit_and_models_without_scores_have_no_such_assumption():
    victim, seen = client(LOSSES["cross-entropy"])
    for form in (replace(victim.form, one_logit=True), replace(victim.form, why_no_loss="it returns images")):
        assert loss_assumed(replace(victim, form=form), seen) is None


def test_the_reference_federation_announces_its_loss():
    for protocol in ("fedsgd", "fedavg"):
        steps = {"local_steps": 1} if protocol == "fedavg" else {}
        assert Settings(protocol=protocol, **steps).announced.loss == "cross-entropy"


@pytest.mark.parametrize(
    ("settings", "loss"),
    [
        ({"loss": "cross_entropy"}, "cross-entropy"),
        ({"train.criterion": "nn.CrossEntropyLoss"}, "cross-entropy"),
        ({"loss_fn": "FocalLoss"}, "FocalLoss"),
        ({"loss": 0.53}, None),
        ({"train-loss": "0.53"}, None),
        ({"eval-loss": "mse"}, None),
        ({"criterion": "ce", "label-smoothing": 0.1}, "torch.nn:CrossEntropyLoss(label_smoothing=0.1)"),
        ({"loss": "focal", "label-smoothing": 0.1}, "focal with label smoothing of 0.1"),
        ({"loss": "my_app.task:focal"}, "my_app.task:focal"),
        ({"criterion": "ce", "label-smoothing": 0.0}, "cross-entropy"),
        ({"lr": 0.1}, None),
    ],
)
def test_settings_and_replies_that_name_a_loss(settings, loss):
    assert announced_settings(settings).fields.get("loss") == loss


def test_the_notes_settle_it(tmp_path):
    for text in ('[protocol]\nloss = "cross-entropy"\n', 'loss = "cross-entropy"\n'):
        (tmp_path / "tape.toml").write_text(text)
        assert with_notes(TapeHeader(), tmp_path / "tape").protocol.loss == "cross-entropy"
