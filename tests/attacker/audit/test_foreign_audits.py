"""Apps that announce little, audited from their tapes: normalised images, own dropout, one logit, an autoencoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.nn import functional as F

import fl_precode as flp
from attacker.audit.federations.federation import open_federations
from attacker.audit.inputs.tape_source import TapeSource
from attacker.audit.planning.plan import plan_audit
from attacker.audit.settings import AuditSettings
from attacker.reasons import because
from fl_precode import Protocol
from fl_precode.models import build_model
from fl_precode.models.outputs import class_scores
from fl_precode.tape import TapeHeader, TapeWriter
from fl_precode.tape.notes import input_spec
from tests.attacker.audit.test_image_scale import normalised

X = torch.tensor(load_digits().images[:2] / 16, dtype=torch.float32)[:, None]
Y = torch.tensor(load_digits().target[:2])
RATE = 0.1


def cross_entropy(output, x, y):
    return F.cross_entropy(class_scores(output, 10), y)


def taped(folder, model, *, loss=cross_entropy, classes=10, images=X, train=False, defence="unknown", update=None):
    """A round of two clients with an image each, and a header with a shape and no more."""
    inputs = input_spec("1x8x8", classes)
    net = build_model(model, inputs, seed=0, strict=False).train(train)
    names, values = zip(*net.named_parameters(), strict=True)
    protocol = Protocol(local_steps=1, learning_rate=RATE)
    writer = TapeWriter(folder / "tape", TapeHeader(model=model, inputs=inputs, protocol=protocol, defence=defence))
    writer.write_round(1, {name: value.detach().numpy() for name, value in zip(names, values, strict=True)})
    for node in range(2):
        x, y = images[node : node + 1], Y[node : node + 1]
        gradients = torch.autograd.grad(loss(net(x), x, y), values)
        sent = {n: (v - RATE * g).detach().numpy() for n, v, g in zip(names, values, gradients, strict=True)}
        writer.write_observation(1, str(node + 1), sent, batch_size=1, buffers=())
    return folder / "tape"


def decibels(record, folder, truth=X):
    """The best picture of each attack against any true image."""
    best = {}
    for one in record.results:
        if one.reconstruction is not None:
            found = torch.tensor(np.asarray(Image.open(folder / one.reconstruction), dtype=np.float32) / 255)
            errors = [float((found - true[0]).square().mean()) for true in truth]
            best[one.attack] = max(best.get(one.attack, -99.0), float(-10 * np.log10(min(errors) + 1e-9)))
    return best


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5,), (0.5,)), ((0.1307,), (0.3081,)), ((0.0,), (1.0,))], ids=["half", "MNIST", "none"]
)
def test_pictures_of_normalised_images_are_right_and_the_scale_is_said_to_be_a_guess(tmp_path, mean, std):
    tape = taped(tmp_path, "tests.foreign_models:Mlp", images=normalised(X, mean, std))
    record = flp.audit(tape, out=tmp_path / "audit", attacks=["first-layer", "dlg:iterations=200"], victims=2)
    assert min(decibels(record, tmp_path / "audit").values()) > 40
    (federation,) = record.federations
    loss, said = federation.assumptions
    assert (loss.code, said.code) == ("loss", "scale-guessed")
    assert "update sums to zero over the classes" in loss.sentence
    assert said.updates == 2
    assert said.line == f"mean = [{mean[0]}]\nstd = [{std[0]}]"


@pytest.mark.parametrize("defence", ["none", "unknown"])
@pytest.mark.parametrize("model", ["Dropping", "DroppingMaps"])
def test_dropout_of_the_model_s_own_is_answered_and_the_plain_attacks_still_run(tmp_path, model, defence):
    tape = taped(tmp_path, f"tests.foreign_models:{model}", train=True, defence=defence)
    settings = AuditSettings(victims=2, budget=600)
    federations = open_federations([TapeSource(tape=tape)], settings, tmp_path / "controls")
    planned = {one.attack.partition(":")[0]: one for one in plan_audit(federations, settings, estimate=False)}
    assert planned["dropout-inversion"].status == "run"
    assert planned["dropout-inversion"].reason == because("searches-dropout", names="drop")
    assert planned["inverting-gradients"].status == planned["dlg"].status == "run"
    assert planned["noise-recovery"].status == "not_applicable"
    record = flp.audit(tape, out=tmp_path / "audit", attacks=["inverting-gradients:iterations=3"], victims=1)
    assert "dropout-active" in [one.code for one in record.federations[0].assumptions]


def test_dropout_that_drops_nothing_is_no_reason(tmp_path):
    tape = taped(tmp_path, "tests.foreign_models:Dropping(share=0.0)", defence="none")
    settings = AuditSettings(victims=2, budget=600)
    federations = open_federations([TapeSource(tape=tape)], settings, tmp_path / "controls")
    planned = {one.attack.partition(":")[0]: one for one in plan_audit(federations, settings, estimate=False)}
    assert planned["dropout-inversion"].status == "not_applicable"
    assert planned["dropout-inversion"].reason_codes == ["another-defence"]


@pytest.mark.parametrize("settings", ["", "(convolutions=True)", "(probability=True)"])
def test_a_binary_classifier_with_one_output_is_attacked(tmp_path, settings):
    tape = taped(tmp_path, f"tests.foreign_models:OneLogit{settings}", loss=of_one(settings), classes=2)
    attacks = ["idlg:iterations=300"] if "conv" in settings else ["first-layer", "idlg:iterations=300"]
    record = flp.audit(tape, out=tmp_path / "audit", attacks=attacks, victims=2)
    assert min(decibels(record, tmp_path / "audit").values()) > 25
    assert "loss-assumed-bce" in [one.code for one in record.federations[0].assumptions]


def of_one(settings):
    loss = F.binary_cross_entropy if "probability" in settings else F.binary_cross_entropy_with_logits
    return lambda output, x, y: loss(output.reshape(1), (y % 2).float())


def test_an_autoencoder_is_attacked_by_what_needs_no_loss_and_the_plan_says_why_not_by_searches(tmp_path):
    tape = taped(tmp_path, "tests.foreign_models:Autoencoder", loss=lambda output, x, y: F.mse_loss(output, x))
    settings = AuditSettings(victims=2, budget=600)
    federations = open_federations([TapeSource(tape=tape)], settings, tmp_path / "controls")
    planned = {one.attack.partition(":")[0]: one for one in plan_audit(federations, settings, estimate=False)}
    assert {name for name, one in planned.items() if one.status == "run"} >= {"first-layer", "layerwise-inversion"}
    assert planned["inverting-gradients"].reason == because("no-class-scores", what="images")
    record = flp.audit(tape, out=tmp_path / "audit", attacks=["first-layer", "layerwise-inversion"], victims=2)
    assert min(decibels(record, tmp_path / "audit").values()) > 40
    assert record.federations[0].facts.random is None
