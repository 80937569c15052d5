"""Columns of groups reach the evaluation with the truth of an update, and nothing else."""

from __future__ import annotations

import json
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from attacker.audit.record.csv_file import results_text
from attacker.audit.truth.federation import FederationTruth
from attacker.audit.truth.files import FolderTruth, NpzTruth
from attacker.cli.audit import show_results
from attacker.report.page import render_page
from fl_precode.data import load_data
from fl_precode.models.input_spec import InputSpec
from fl_precode.tape import Tape
from tests.attacker.audits import audit_tape
from tests.attacker.html_page import Page
from tests.attacker.taped_federation import tape_federation

INPUTS = InputSpec(channels=1, height=8, width=8, classes=2, mean=(0.0,), std=(1.0,))


class Place(NamedTuple):
    """Where an update is, as a tape's entry says it."""

    node: str
    round: int


@pytest.fixture(scope="module")
def taped(tmp_path_factory):
    """A federation on an own file whose column numbers its images."""
    folder = tmp_path_factory.mktemp("groups")
    digits = load_data("digits").train
    images, labels = digits.images[:60, 0].numpy(), np.unique(digits.labels[:60].numpy(), return_inverse=True)[1]
    sexes = np.array(["female", "male"] * 30)
    np.savez(folder / "own.npz", images=images, labels=labels, group_number=np.arange(60), group_sex=sexes)
    run = tape_federation(folder / "run", dataset=f"npz:{folder / 'own.npz'}", batch_size=1)
    return run, images


def test_the_reference_federation_s_truth_has_the_columns_of_its_images(taped):
    run, images = taped
    source = FederationTruth.read(run.folder / "evaluation.json")
    for entry in Tape(run.tape).entries:
        truth = source.truth(entry)
        (number,) = truth.groups["number"]
        assert np.array_equal(images[int(number)], (truth.images[0, 0] * 255).round().numpy())
        assert truth.groups_of(0) == {"number": number, "sex": ("female", "male")[int(number) % 2]}


def test_an_audit_counts_by_them_although_the_labels_are_withheld(taped, tmp_path, capsys):
    run, _ = taped
    record = audit_tape(run.tape, out=tmp_path, attacks=["first-layer"], victims=4, labels="recovered")
    assert not any(b"female" in path.read_bytes() for path in run.tape.rglob("*") if path.is_file())
    found = {(one.grouping, one.column): one for one in record.group_disclosures}
    assert list(found) == [("class", ""), ("client", ""), ("column", "number"), ("column", "sex")]
    assert all(one.images == one.reconstructed == 4 for one in found.values())
    assert {group.name for group in found["class", ""].groups} == {victim.label_name for victim in record.victims}
    assert "female" in results_text(record)
    shown, redacted = (Page(render_page(record, tmp_path, redact=one)).words for one in (False, True))
    assert "By sex: 2 groups, 4 images" in shown
    number = record.victims[0].groups["number"]
    assert f"number = {number}" in shown
    assert "sex = female" in shown
    assert "number = " not in redacted
    assert "sex = " not in redacted
    assert "a group of one image" in redacted
    show_results(record)
    assert "more often than the rest" not in capsys.readouterr().out


def test_an_npz_truth_gives_the_groups_of_each_update(tmp_path):
    arrays = {"images": np.zeros((6, 8, 8), np.uint8), "labels": np.arange(6) % 2, "node": list("aabbbb")}
    np.savez(tmp_path / "truth.npz", **arrays, group_sex=list("fmfmfm"), group_age=np.arange(6))
    source = NpzTruth(tmp_path / "truth.npz", {}, ["a", "b"])
    assert source.truth(Place("a", 1)).groups == {"sex": ["f", "m"], "age": ["0", "1"]}
    assert source.truth(Place("b", 1)).groups_of(3) == {"sex": "m", "age": "5"}
    np.savez(tmp_path / "truth.npz", **arrays, group_sex=list("fmfmf"))
    with pytest.raises(ValueError, match="expected 'group_sex' as 6 groups, one for each image"):
        NpzTruth(tmp_path / "truth.npz", {}, ["a", "b"])


def test_a_folder_s_table_names_pictures_by_client_and_class(tmp_path):
    for client in ("a", "b"):
        for label in ("0", "1"):
            (tmp_path / client / label).mkdir(parents=True)
            Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / client / label / "x.png")
    table = tmp_path / "groups.csv"
    table.write_text("file,sex\na/0/x.png,f\nb\\0\\x.png,m\na/1/x.png,\nb/1/x.png,f\n")
    source = FolderTruth(tmp_path, {}, ["a", "b"], INPUTS)
    assert source.truth(Place("a", 1)).groups == {"sex": ["f", ""]}
    assert source.truth(Place("a", 1)).groups_of(1) == {}
    assert source.truth(Place("b", 7)).groups == {"sex": ["m", "f"]}
    table.write_text("file,sex\na/0/x.png,f\n")
    with pytest.raises(ValueError, match="no line of 3 pictures, such as 'a/1/x.png'"):
        FolderTruth(tmp_path, {}, ["a", "b"], INPUTS)


def test_without_a_truth_nothing_is_said_by_group(taped, tmp_path):
    run, _ = taped
    record = audit_tape(run.tape, out=tmp_path, attacks=["first-layer"], victims=2, truth=False)
    assert record.group_disclosures == []
    assert all(victim.groups == {} for victim in record.victims)
    assert "so that nothing can be counted by group" in Page(render_page(record, tmp_path)).words
    assert "groups" in json.loads((tmp_path / "audit.json").read_text())["victims"][0]
