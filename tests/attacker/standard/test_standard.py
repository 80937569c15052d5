"""A standard is frozen, and its result depends on the tape alone."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from attacker.attacks.gradient_matching.options import OPTIONS
from attacker.attacks.registry import build_attack, entry_of
from attacker.audit.record.json_file import read_record
from attacker.audit.settings import AuditSettings
from attacker.report.repeat import command
from attacker.standard.definition import STANDARD_1, STANDARDS
from attacker.standard.result import Score, StandardResult, read_result
from attacker.standard.run import run_standard
from fl_precode.spec import parse_spec
from tests.attacker.standard.small import SMALL, sealed_federation
from tests.attacker.taped_federation import tape_federation

LEFT_OUT = {"preset", "layers", "history", "distance", "total_variation"}
"""What a spec of standard-1 need not write out: fixed by others of its settings, or it has no text."""


def test_standard_1_is_what_it_was():
    """A change is no repair of standard-1: it makes standard-2, beside it."""
    assert STANDARD_1.digest == "232f28ae43701de8903eeec4bf73e781d40f3f3eed13d986537a8c4acaac8070"
    assert [*STANDARDS] == ["standard-1"]


@pytest.mark.parametrize("change", [{"seed": 1}, {"updates": 9}, {"attacks": ("first-layer",)}, {"candidates": 999}])
def test_everything_that_a_result_depends_on_is_in_the_digest(change):
    assert replace(STANDARD_1, **change).digest != STANDARD_1.digest


def test_every_setting_of_every_attack_is_written_out():
    for spec in STANDARD_1.attacks:
        build_attack(spec)
        assert {*entry_of(spec).options} - {*parse_spec(spec).options} <= LEFT_OUT, spec
    assert {"layers", "history", "distance", "total_variation"} <= OPTIONS.keys()


def test_formulas_come_first():
    exact = [entry_of(spec).exact for spec in STANDARD_1.attacks]
    assert exact == sorted(exact, reverse=True)


def test_two_runs_write_equal_bytes_and_no_time(tmp_path):
    taped = tape_federation(tmp_path, model="lenet", clients=2, rounds=1)
    results = [run_standard(taped.tape, out=tmp_path / out, standard=SMALL)[0] for out in "ab"]
    files = [(tmp_path / out / "standard.json").read_bytes() for out in "ab"]
    assert files[0] == files[1]
    text = files[0].decode()
    assert str(tmp_path) not in text
    assert not re.search(r"seconds|created|20\d\d-\d\d", text)
    result = read_result(tmp_path / "a" / "standard.json", StandardResult)
    assert result == results[0]
    assert (result.standard, result.definition) == ("standard-0", SMALL.digest)
    assert [attack.status for attack in result.attacks] == ["not_applicable", "run", "not_applicable"]
    assert result.attacks[0].reason_codes == ["first-layer-not-linear"]
    assert result.best == SMALL.attacks[1]
    assert result.attacks[1].figures.images == 2
    record = read_record(tmp_path / "a")
    assert record.settings["standard"] == f"standard-0 ({SMALL.digest[:12]})"
    assert record.title.startswith("standard-0: ")
    assert command(record) == f"fl-precode standard {taped.tape} --out standard"
    with pytest.raises(ValueError, match="no complete result of format"):
        read_result(tmp_path / "a" / "standard.json", Score)


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one(tmp_path):
    taped = tape_federation(tmp_path, model="lenet", clients=5, rounds=2, defence="precode")
    standard = replace(SMALL, attacks=(*SMALL.attacks, "hybrid:steps=2,inner=5", "noise-restoring:iterations=10"))
    for workers in (1, 2):
        run_standard(taped.tape, out=tmp_path / str(workers), standard=standard, workers=workers)
    one, two = ((tmp_path / str(workers) / "standard.json").read_bytes() for workers in (1, 2))
    assert one == two
    assert json.loads(one)["reconstructed_by_any"] is not None


def test_a_sealed_tape_is_compared_with_its_truth_by_the_key_only(tmp_path):
    taped, key = sealed_federation(tmp_path)
    standard = replace(SMALL, attacks=("first-layer",))
    blind, _ = run_standard(taped.tape, out=tmp_path / "blind", standard=standard)
    assert blind.reconstructed_by_any is None
    assert blind.attacks[0].figures.reconstructed is None
    seen, _ = run_standard(taped.tape, out=tmp_path / "seen", standard=standard, key=key)
    assert seen.reconstructed_by_any == 5
    assert seen.attacks[0].figures.identified == 5


def test_a_standard_has_attacks_and_no_budget_in_seconds():
    with pytest.raises(ValueError, match="no budget in seconds"):
        AuditSettings(standard="standard-1", budget=60.0)
    with pytest.raises(ValueError, match="no budget in seconds"):
        AuditSettings(standard="standard-1", attacks=("first-layer",), budget=60.0)
