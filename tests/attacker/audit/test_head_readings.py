"""An audit of clients that train a head alone says: labels and features were recovered, images were not."""

from __future__ import annotations

import pytest

from attacker.audit.verdict.verdict import verdicts
from tests.attacker.audits import audit_tape
from tests.attacker.leaking_models import small_photographs
from tests.attacker.taped_federation import tape_federation

ATTACKS = ("feature-inversion:steps=20", "inverting-gradients:iterations=5")


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    data, model = small_photographs(folder, classes=12), "tests.attacker.leaking_models:pooled_head"
    tape = tape_federation(folder / "run", model=model, dataset=data, batch_size=8, rounds=2).tape
    return audit_tape(tape, out=folder / "audit", attacks=ATTACKS, victims=32)


def test_features_of_all_images_are_read_and_name_them(record):
    (summary,) = record.federations
    for reading in summary.facts.head_readings:
        assert (reading.layer, reading.images, reading.known, reading.labels) == ("6", 8, 8, 8)
        assert reading.candidates > 16
        assert reading.identified == 8
        assert reading.residual < 1e-6
    assert len(summary.facts.head_readings) == 2


def test_the_verdict_calls_it_neither_a_leak_of_images_nor_held(record):
    (verdict,) = record.verdicts
    assert verdict.verdict == "not shown to leak", verdict.sentence
    assert "images' features are known exactly" in verdict.sentence
    said = [caution for caution in verdict.cautions if "nearest to their own image for 8 of 8" in caution]
    assert len(said) == 2
    assert "Known to 1 %: the input of" in said[0]
    assert "for 8 of 8 images, with the classes of 8." in said[0]
    assert "show none by themselves" in said[0]


def test_a_defence_is_not_said_to_have_held_where_features_are_known(record):
    (summary,) = record.federations
    silent = summary.facts.model_copy(update={"head_readings": []})
    without = record.model_copy(update={"federations": [summary.model_copy(update={"facts": silent})]})
    (said,) = verdicts(without)
    assert "features are known" not in said.sentence
    assert not [caution for caution in said.cautions if "nearest to their own" in caution]


def test_models_that_are_trained_as_a_whole_have_no_such_reading(tmp_path):
    tape = tape_federation(tmp_path / "run", rounds=1).tape
    (summary,) = audit_tape(tape, out=tmp_path / "audit", attacks=["first-layer"]).federations
    assert summary.facts.head_readings == []
