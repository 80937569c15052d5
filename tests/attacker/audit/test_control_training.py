"""The control of a trained bottleneck model is as well trained as that model, or the audit says that it is not."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from attacker.audit.federations.control_training import ControlTraining, near
from attacker.audit.federations.undefended_control import base_names, control_training, undefended, write_control
from attacker.audit.inputs.tape_source import TapeSource, open_subject
from attacker.audit.record.schema import ControlRound
from attacker.audit.truth.base import Truth
from attacker.audit.verdict.flags import flags
from attacker.audit.verdict.verdict import verdicts
from fl_precode.data import load_data
from fl_precode.defences.registry import apply_defence
from fl_precode.local_training import batch_gradient
from fl_precode.models import build_model
from fl_precode.observation import Observation, Protocol
from tests.attacker.audit.test_verdict import HELD, PAIR
from tests.attacker.records import federation, told
from tests.attacker.taped_federation import tape_federation

DIGITS = load_data("digits", "")


def digits(count=512):
    images, labels = DIGITS.train.batch(range(count))
    return Truth(images=images, labels=labels)


def trained(model, *, steps=120):
    known, optimiser = digits(), torch.optim.Adam(model.parameters(), 2e-3)
    order = torch.Generator().manual_seed(3)
    for _ in range(steps):
        few = torch.randperm(512, generator=order)[:64]
        optimiser.zero_grad()
        F.cross_entropy(model(DIGITS.inputs.normalise(known.images[few])), known.labels[few]).backward()
        optimiser.step()
    return model


def seen_of(model, number=1):
    update, _ = batch_gradient(model, (torch.zeros(1, *DIGITS.inputs.shape), torch.zeros(1, dtype=torch.long)))
    return Observation(
        parameters={name: value.detach().clone() for name, value in model.named_parameters()},
        buffers=dict(model.named_buffers()), update=update, kind="gradient", batch_size=1,
        protocol=Protocol(name="fedsgd", local_steps=1), round=number, node="1",
    )  # fmt: skip


def accuracy(model):
    known = digits()
    with torch.no_grad():
        return float((model.eval()(DIGITS.inputs.normalise(known.images)).argmax(1) == known.labels).float().mean())


CASES = [("mlp", "precode:latent=32"), ("lenet:activation=relu", "cvb")]


@pytest.fixture(scope="module", params=CASES, ids=[" ".join(case) for case in CASES])
def bottleneck(request):
    """A trained defended model, and the undefended one at its weights."""
    name, defence = request.param
    plain = build_model(name, DIGITS.inputs, seed=0)
    defended = trained(apply_defence(defence, plain, DIGITS.inputs))
    return defended, undefended(plain, seen_of(defended), base_names(defended))


def train_control(bottleneck, **settings):
    defended, cut = bottleneck
    trainer = ControlTraining(defended=defended, known=digits(), inputs=DIGITS.inputs, **settings)
    model = undefended(cut, seen_of(cut), {name: name for name in cut.state_dict()})
    return trainer, trainer.at(seen_of(defended), model)


def test_the_control_of_a_trained_bottleneck_is_trained_to_the_same_loss(bottleneck):
    defended, cut = bottleneck
    assert accuracy(defended) > 0.6
    trainer, control = train_control(bottleneck, seconds=60.0)
    (one,) = trainer.rounds
    assert not near(one.cut_loss, one.defended_loss), "cut out of its bottleneck it is not trained"
    assert abs(one.loss - one.defended_loss) < abs(one.cut_loss - one.defended_loss) / 3
    assert one.steps > 0
    assert accuracy(control) > accuracy(cut) + 0.2
    assert set(control.state_dict()) == set(cut.state_dict())


def test_it_is_the_same_control_every_time(bottleneck):
    one, two = (train_control(bottleneck, seconds=60.0)[1].state_dict() for _ in range(2))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_without_time_nothing_is_trained_and_the_losses_say_so(bottleneck):
    trainer, control = train_control(bottleneck, seconds=0.0)
    assert all(torch.equal(value, control.state_dict()[name]) for name, value in bottleneck[1].state_dict().items())
    assert (trainer.rounds[0].steps, trainer.rounds[0].loss) == (0, trainer.rounds[0].cut_loss)


def test_a_later_round_goes_on_from_the_control_of_the_last(bottleneck):
    defended, cut = bottleneck
    trainer, _ = train_control(bottleneck, seconds=60.0)
    again = undefended(cut, seen_of(cut), {name: name for name in cut.state_dict()})
    trainer.at(seen_of(defended, 2), again)
    assert trainer.rounds[1].steps < trainer.rounds[0].steps
    assert trainer.rounds[1].cut_loss == trainer.rounds[0].cut_loss


def test_what_the_server_froze_stays_frozen(bottleneck):
    defended, cut = bottleneck
    model = undefended(cut, seen_of(cut), {name: name for name in cut.state_dict()})
    first = next(iter(dict(model.named_parameters())))
    dict(model.named_parameters())[first].requires_grad_(False)
    trainer = ControlTraining(defended=defended, known=digits(), inputs=DIGITS.inputs, seconds=60.0)
    control = trainer.at(seen_of(defended), model)
    assert torch.equal(control.state_dict()[first], cut.state_dict()[first])
    assert trainer.rounds[0].steps > 0


@pytest.mark.parametrize(("defence", "rounds"), [("precode", [1, 2]), ("prune:share=0.9", [])])
def test_the_losses_are_kept_beside_the_control(tmp_path, defence, rounds):
    taped = tape_federation(tmp_path, rounds=2, clients=2, defence=defence)
    subject = open_subject(TapeSource(tape=taped.tape))
    found = write_control(subject, subject.tape.entries, tmp_path / "control")
    assert [one.round for one in found] == rounds
    assert control_training(tmp_path / "control") == found
    assert all(near(one.loss, one.defended_loss) and one.steps == 0 for one in found), "untrained models are alike"


@pytest.mark.parametrize(
    ("defended_loss", "loss", "flagged"),
    [
        (0.48, 2.32, True),
        (0.5, 0.56, False),
        (0.02, 0.1, False),
        (2.3, 2.31, False),
        (0.5, None, True),
        (2.3, 1.1, True),
    ],
)
def test_a_control_that_is_not_as_well_trained_is_named_and_forbids_held(defended_loss, loss, flagged):
    training = [ControlRound(round=3, defended_loss=defended_loss, cut_loss=2.4, loss=loss, steps=40)]
    own = [PAIR[1].model_copy(update={"id": "f2"}), federation("f1", control_of="f2", control_training=training)]
    whole = told(own, HELD)
    whole = whole.model_copy(update={"flags": flags(whole)})
    assert [one.name for one in whole.flags] == (["control-untrained"] if flagged else [])
    (verdict,) = [one for one in verdicts(whole) if one.federation == "f2"]
    assert (verdict.verdict == "held against everything tried") is not flagged
    if flagged and loss is not None:
        assert f"is {loss:.2f} nats, that of the defended model {defended_loss:.2f} (round 3" in whole.flags[0].sentence


def test_a_model_that_is_not_finite_is_no_reason_to_train_for_ever():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        model[1].weight.fill_(float("nan"))
    defended = apply_defence("precode:latent=4", model, DIGITS.inputs)
    trainer = ControlTraining(defended=defended, known=digits(64), inputs=DIGITS.inputs, seconds=2.0)
    trainer.at(seen_of(defended), model)
    assert trainer.rounds[0].loss is None
