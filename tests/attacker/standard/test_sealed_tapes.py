"""The twelve tapes, their index, and the page of who reconstructs what."""

from __future__ import annotations

import json
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from attacker.standard.definition import STANDARD_1, STANDARDS
from attacker.standard.run import run_standard
from benchmarks.sealed_tapes import MOST_BYTES, TAPES, check, make
from benchmarks.standard_page import collect, table
from tests.attacker.standard.small import SMALL

ROOT = Path(__file__).resolve().parents[3]
FEW = (replace(TAPES[2], dataset="digits", updates=2), replace(TAPES[7], dataset="digits", updates=2))


def read(name):
    return json.loads((ROOT / "docs" / "results" / name).read_text())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tapes")
    return folder, make(folder / "sealed", folder / "sealed.key", FEW)


def test_the_same_key_makes_the_same_bytes_and_another_key_others(made, tmp_path):
    folder, index = made
    again = make(tmp_path / "again", folder / "sealed.key", FEW)
    assert again == index
    other = make(tmp_path / "other", tmp_path / "other.key", FEW)
    assert other["key_sha256"] != index["key_sha256"]
    assert not {one["fingerprint"] for one in other["tapes"]} & {one["fingerprint"] for one in index["tapes"]}


def test_nothing_in_the_clear_says_what_the_images_are(made):
    folder, index = made
    files = [path for path in (folder / "sealed").rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"truth.sealed", "tape.json", "manifest.jsonl"}
    assert not [path for path in files if path.name == "evaluation.json" or b'"seed"' in path.read_bytes()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in [*files, folder / "sealed.key"]} == {0o600}
    assert stat.S_IMODE((folder / "sealed").stat().st_mode) == 0o700


def test_the_check_names_what_was_altered_is_missing_or_was_added(made, tmp_path):
    folder, index = made
    assert check(folder / "sealed", index) == []
    shutil.copytree(folder / "sealed", tmp_path / "copy")
    place = tmp_path / "copy" / FEW[0].name
    (place / "tape/tape.json").write_text("{}")
    (place / "truth.sealed").unlink()
    (place / "more").write_text("")
    assert sorted(problem.rpartition("/")[2] for problem in check(tmp_path / "copy", index)) == [
        "more is not in the index",
        "tape.json was altered: its SHA-256 is not that of the index",
        "truth.sealed is missing",
    ]
    assert "expected an index" in check(tmp_path / "copy", {})[0]


def test_a_tape_opens_with_its_key_and_its_result_comes_to_the_page(made, tmp_path, monkeypatch):
    folder, index = made
    monkeypatch.setitem(STANDARDS, SMALL.name, SMALL)
    name = FEW[0].name
    run_standard(folder / "sealed" / name / "tape", out=tmp_path / name, standard=SMALL, key=folder / "sealed.key")
    record = collect(tmp_path, tmp_path, index, "2026-11-30")
    first, second = record["tapes"]
    assert first["standard"]["reconstructed_by_any"] in range(3)
    assert "standard" not in second
    lines = table(record).splitlines()
    assert f"{first['standard']['reconstructed_by_any']} of 2" in next(line for line in lines if name in line)
    assert "not run" in next(line for line in lines if FEW[1].name in line)
    with pytest.raises(ValueError, match="of another tape"):
        collect(tmp_path, tmp_path, {**index, "tapes": [{**index["tapes"][1], "name": name}]}, "2026-11-30")


def test_the_published_index_is_of_twelve_tapes_of_every_kind():
    index = read("sealed-tapes.json")
    assert [one["name"] for one in index["tapes"]] == [tape.name for tape in TAPES]
    assert len(TAPES) == 12
    assert index["bytes"] == sum(one["bytes"] for one in index["tapes"]) <= MOST_BYTES
    assert {one["protocol"] for one in index["tapes"]} == {"fedsgd", "fedavg"}
    assert [(one["model"], one["defence"]) for one in index["tapes"]] == [(tape.model, tape.defence) for tape in TAPES]
    assert all("truth.sealed" in one["files"] for one in index["tapes"])


def test_the_page_shows_the_record_and_the_record_is_of_the_published_tapes():
    record, index = read("standard.json"), read("sealed-tapes.json")
    assert table(record) in (ROOT / "docs/results/standard.md").read_text()
    assert record["key_sha256"] == index["key_sha256"]
    assert [one["fingerprint"] for one in record["tapes"]] == [one["fingerprint"] for one in index["tapes"]]
    results = [one["standard"] for one in record["tapes"] if "standard" in one]
    assert results
    assert {(one["standard"], one["definition"]) for one in results} == {("standard-1", STANDARD_1.digest)}
