"""Federations whose clients minimise another loss, taped by the reference client's code and audited by its name."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fl_precode as flp
from attacker.attacks import Outcome, build_attack
from attacker.audit.federations.control_training import ControlTraining
from attacker.audit.inputs.tape_source import TapeSource, open_subject
from attacker.audit.truth.base import Truth
from attacker.gradients.distances import squared_distance
from attacker.gradients.one_step import gradient_products
from attacker.gradients.replay import Replay
from attacker.gradients.trace import trace
from attacker.labels import best_labels
from attacker.victim import Victim
from benchmarks import losses
from benchmarks.simulated_tapes import simulate
from fl_precode.federation.config import Settings, SettingsError
from fl_precode.loss import LossError, set_numbers
from tests.attacker import tiny

SPEC = tiny.inputs()
SEARCH = "dlg:iterations=120"
OPTIONS = argparse.Namespace(
    dataset="digits",
    model="mlp",
    clients=2,
    rounds=1,
    batch_size=2,
    seed=0,
    attacks=[SEARCH.replace("dlg", "idlg"), "first-layer"],
)


def weighted(scores, labels):
    return F.cross_entropy(scores, labels, weight=torch.tensor([0.1, 1.0, 2.0, 0.5]).to(scores))


def audited(source, out):
    record = losses.audited(source, out, OPTIONS)
    (federation,) = record.federations
    distances = [one.matching_loss for one in record.results if one.attack.startswith("idlg")]
    return record, [one.code for one in federation.assumptions], max(distances)


@pytest.mark.parametrize("name", ["label smoothing", "class weights", "focal", "BCE, one class an image"])
def test_a_federation_is_replayed_by_the_loss_that_its_tape_names(tmp_path, name):
    tape = simulate(tmp_path / "run", losses.federation(OPTIONS, losses.LOSSES[name])).folder / "tape"
    assert json.loads((tape / "tape.json").read_text())["protocol"]["loss"] == losses.LOSSES[name]
    record, assumed, distance = audited(TapeSource(tape=tape), tmp_path / "right")
    assert "loss" not in assumed
    assert not any(flag.name == "loss-assumed" for flag in record.flags)
    assert record.federations[0].loss_named_by == "tape"
    other, _, wrong = audited(TapeSource(tape=tape, loss="cross-entropy"), tmp_path / "wrong")
    assert other.federations[0].loss_named_by == "auditor"
    assert distance < 0.3 * wrong


@pytest.mark.slow
@pytest.mark.federation
def test_a_real_federation_of_images_with_several_classes(tmp_path, monkeypatch):
    """By Flower's own runtime: the app names its loss at the interceptor, and its clients record rows of classes."""
    monkeypatch.syspath_prepend(losses.SEVERAL_APP)
    source = losses.launched_several(tmp_path, OPTIONS)
    record, assumed, _ = audited(source, tmp_path / "audit")
    assert record.federations[0].loss == "several_numbers.task:criterion"
    assert record.federations[0].truth_note == ""
    assert "loss" not in assumed
    searched = [one for one in record.results if one.attack.startswith("idlg")]
    assert len(searched) == 4
    assert all(one.matching_loss < 0.01 * one.starting_loss for one in searched)
    labels = {one.label for one in record.victims}
    assert None not in labels
    assert any(label >= 4 for label in labels), "a set of classes has a number behind those of the classes"
    wrong, _, _ = audited(replace(source, loss="cross-entropy"), tmp_path / "wrong")
    assert "name the loss that takes rows of zeros and ones" in wrong.federations[0].truth_note
    assert all(one.ssim is None for one in wrong.results)


def test_a_loss_that_no_audit_can_use_is_refused_where_the_tape_is_opened(tmp_path):
    tape = simulate(tmp_path / "run", losses.federation(OPTIONS, "cross-entropy")).folder / "tape"
    assert open_subject(TapeSource(tape=tape)).victim.minimises_cross_entropy
    for loss, words in (
        ("no_such_app.task:loss", "there is no such module"),
        ("tests.fl_precode.some_losses:for_each_image", "got a tensor of shape"),
        ("tests.fl_precode.some_losses:once", "twice differentiable"),
    ):
        (tmp_path / "run" / "tape.toml").write_text(f'[protocol]\nloss = "{loss}"\n')
        with pytest.raises(LossError, match=words):
            open_subject(TapeSource(tape=tape))


def test_a_worker_gets_the_loss_by_its_name(tmp_path):
    from attacker.audit.execution.attack_job import Site

    tape = simulate(tmp_path / "run", losses.federation(OPTIONS, "cross-entropy")).folder / "tape"
    site = Site.of(TapeSource(tape=tape, loss=losses.focal), "")
    assert site.loss == "benchmarks.losses:focal"
    victim = site.open().victim
    assert victim.criterion is not None
    assert victim.criterion.name == "benchmarks.losses:focal"


def test_what_needs_cross_entropy_says_that_it_does_not_apply():
    model = nn.Sequential(nn.Conv2d(1, 12, 3), nn.Tanh(), nn.Flatten(), nn.Linear(192, 4, bias=False)).double()
    victim = Victim(model=model, inputs=SPEC, loss=losses.focal)
    seen = tiny.observe(victim, tiny.images(SPEC, 1), [1])
    labels, why = best_labels(victim, seen, generator=torch.Generator().manual_seed(0))
    assert labels is None
    assert why == "label recovery needs cross-entropy, and the clients minimise 'benchmarks.losses:focal'"
    for spec in ("dlg:iterations=2", "layerwise-inversion"):
        (found,) = build_attack(spec)(victim, [seen], generator=torch.Generator().manual_seed(0))
        assert found.outcome is Outcome.NOT_APPLICABLE
        assert found.reason_codes == ("needs-cross-entropy",)


def test_labels_that_no_recovery_reads_are_tried_where_they_are_few():
    victim = tiny.victim(tiny.mlp(SPEC), SPEC)
    victim = Victim(model=victim.model, inputs=SPEC, loss=losses.focal)
    seen = tiny.observe(victim, tiny.images(SPEC, 1), [2])
    attack = build_attack("inverting-gradients:iterations=150")
    (found,) = attack(victim, [seen], generator=torch.Generator().manual_seed(0))
    assert found.labels.tolist() == [2]
    assert found.reason_codes[0] == "labels-tried"
    several = Victim(model=victim.model, inputs=SPEC, loss=nn.BCEWithLogitsLoss())
    (found,) = attack(several, [tiny.observe(several, tiny.images(SPEC, 1), [2])], generator=torch.Generator())
    assert found.labels is None
    assert found.reason_codes[0] == "labels-unknown"


@pytest.mark.parametrize("build", [tiny.mlp, tiny.convnet])
@pytest.mark.parametrize("restarts", [1, 3])
def test_a_loss_that_is_no_mean_of_images_is_that_of_each_candidate_alone(build, restarts):
    victim = Victim(model=build(SPEC).double(), inputs=SPEC, loss=weighted)
    assert not victim.criterion.of_images
    x, labels = tiny.images(SPEC, 3), [0, 2, 2]
    seen = tiny.observe(victim, x, labels)
    products = gradient_products(Replay(victim, seen.parameters, {}), [seen.update], trace(victim), batch_size=3)
    others = torch.stack([x, *(tiny.images(SPEC, 3, seed=9 + number) for number in range(restarts - 1))])
    found = squared_distance(products(others[None], torch.tensor(labels)[None, None]))
    assert float(found[0, 0].abs()) < 1e-12
    assert restarts == 1 or float(found[0, 1:].min()) > 1e-6


def test_a_control_is_trained_by_the_loss_of_its_clients():
    torch.manual_seed(0)
    defended, cut = (tiny.mlp(SPEC).double() for _ in range(2))
    images, labels = torch.rand(64, *SPEC.shape, dtype=torch.float64), torch.arange(64) % 4
    known = Truth(images=images, labels=labels)
    for loss in (None, losses.focal):
        trained = ControlTraining(defended=defended, known=known, inputs=SPEC, loss=loss)
        expected = (loss or F.cross_entropy)(cut(SPEC.normalise(images)), labels)
        assert trained._loss(cut) == pytest.approx(float(expected.detach()), rel=1e-6)


def test_settings_refuse_a_loss_that_clients_cannot_minimise():
    assert Settings(loss="benchmarks.losses:focal").announced.loss == "benchmarks.losses:focal"
    assert "loss" not in Settings().to_run_config()
    with pytest.raises(SettingsError, match="loss: loss 'focal': expected 'cross-entropy' or package"):
        Settings(loss="focal")
    with pytest.raises(SettingsError, match="loss: dp takes gradients of cross-entropy itself"):
        Settings(loss="benchmarks.losses:focal", defence="dp:max_norm=1,noise_multiplier=1")


def test_rows_of_zeros_and_ones_are_labels_of_recorded_truth():
    from fl_precode.true_images import true_batch

    rows = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 1]])
    _, labels = true_batch(torch.rand(2, 1, 4, 4), rows)
    assert torch.equal(labels, set_numbers(rows))
    assert true_batch(torch.rand(1, 1, 4, 4), torch.tensor([[0, 0, 1.0]]))[1].tolist() == [2]
    with pytest.raises(ValueError, match=r"soft labels, as of mixup or smoothing, are not replayed.*argmax"):
        true_batch(torch.rand(1, 1, 4, 4), torch.tensor([[0.1, 0.7, 0.2]]))


def test_a_division_holds_under_every_loss_and_reads_no_label(tmp_path):
    alone = argparse.Namespace(**{**vars(OPTIONS), "batch_size": 1})
    tape = simulate(tmp_path / "run", losses.federation(alone, "benchmarks.losses:focal")).folder / "tape"
    record = flp.audit(tape, attacks=["first-layer"], victims=1, out=tmp_path / "audit")
    (row,) = record.results
    assert row.ssim > 0.999
    assert row.recovered_label is None
    assert record.federations[0].loss == "benchmarks.losses:focal"
