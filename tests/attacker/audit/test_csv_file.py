"""The table of results: everything that the record has, in a form that runs nothing."""

from __future__ import annotations

import csv
import io
import stat

import pytest

from attacker.audit.record.csv_file import COLUMNS, LABEL_COLUMNS, RESULTS_NAME, labels_text, results_text
from attacker.audit.record.labels import LabelDisclosure, LabelReading
from attacker.audit.record.schema import ImageResult, VictimImage
from tests.attacker.audits import audit_tape
from tests.attacker.records import PLAIN, federation, record, rows, summary
from tests.attacker.taped_federation import tape_federation

FORMULA = '=HYPERLINK("http://x","y")'


def read(text):
    return list(csv.DictReader(io.StringIO(text)))


def whole(**changes):
    victims = [
        VictimImage(id="f2-u0-i0", federation="f2", round=1, node="7", image=0, label=3, label_name="=3", truth=None)
    ]
    results = rows("f2", PLAIN, 2, **changes)
    return record([federation("f2", control_of="f1")], [summary("f2", PLAIN, 0)], results=results, victims=victims)


def test_every_field_of_every_result_is_there():
    made = whole(ssim=[0.6, -0.25], matching_loss=None)
    first, second = read(results_text(made))
    assert tuple(first) == COLUMNS
    assert set(ImageResult.model_fields) < set(COLUMNS)
    assert float(first["ssim"]) == 0.6
    assert second["ssim"] == "-0.25"  # a number is no formula
    assert first["matching_loss"] == ""
    assert (first["reconstructed"], second["reconstructed"]) == ("1", "0")
    assert (first["label"], second["label"]) == ("3", "")
    assert first["control_of"] == "f1"


@pytest.mark.parametrize(
    "text",
    [FORMULA, "+1+cmd", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =1"],
)
def test_names_that_a_spreadsheet_would_run_are_text(text):
    row, _ = read(results_text(whole(node=text, reason=text)))
    assert row["node"] == row["reason"] == "'" + text.replace("\r", "\n")


def test_quotes_lines_and_nulls_break_no_table():
    row, other = read(results_text(whole(reason='a "b",\nc\0d')))
    assert row["reason"] == other["reason"] == 'a "b",\ncd'


def test_without_truth_no_image_is_reconstructed_or_not():
    row, _ = read(results_text(whole(ssim=None, baseline_ssim=None)))
    assert row["reconstructed"] == ""


def test_an_audit_writes_it_for_its_owner_only(tmp_path):
    taped = tape_federation(tmp_path, rounds=1, nodes=(FORMULA, "7"))
    found = audit_tape(taped.tape, out=tmp_path / "audit", attacks=["first-layer"], victims=2)
    path = tmp_path / "audit" / RESULTS_NAME
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    lines = read(path.read_text())
    assert [float(line["ssim"]) for line in lines] == [row.ssim for row in found.results]
    assert f"'{FORMULA}" in {line["node"] for line in lines}


def test_labels_are_a_table_by_update():
    reading = LabelReading(
        round=1, node="=1", images=3, method="counts", counts=[2, 1], right=3, guess_right=2, chance=0.25
    )
    unread = LabelReading(
        round=2, node="2", images=3, method="", counts=[], right=None, guess_right=None, chance=None, reason="no bias"
    )
    found = LabelDisclosure(
        federation="f1", updates=[reading, unread], known=9, read=1, compared=1, exact=1, independent=1,
        interval=(0.025, 1.0), guess=0.25, p_value=0.25, images=3, right=3, guess_right=2, p_ahead=0.5,
    )  # fmt: skip
    whole = record([federation("f1")], [], label_disclosures=[found])
    first, second = csv.DictReader(io.StringIO(labels_text(whole)))
    assert tuple(first) == LABEL_COLUMNS
    assert (first["node"], first["counts"], first["exact"], first["federation"]) == ("'=1", "2 1", "1", "f1")
    assert (second["exact"], second["reason"]) == ("", "no bias")
