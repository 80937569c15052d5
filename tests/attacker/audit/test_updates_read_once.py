"""An audit reads and checks each update once in a process, however many of its parts want it."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

import fl_precode as flp
from attacker.audit.audit import audit
from attacker.audit.inputs.tape_source import UPDATES, TapeSource
from attacker.audit.settings import AuditSettings
from fl_precode.tape import reader as tape_reader
from tests.attacker.taped_federation import tape_federation

ATTACKS = ("first-layer", "hybrid", "ignore:iterations=3", "inverting-gradients:iterations=3")


@pytest.fixture
def reads(monkeypatch) -> Counter[str]:
    """How often each file with tensors was read."""
    counted: Counter[str] = Counter()
    read = tape_reader._read_with_status

    def counting(folder: Path, file: str, **limits: int) -> tuple[bytes, os.stat_result]:
        if file.endswith(".safetensors"):
            counted[str(folder / file)] += 1
        return read(folder, file, **limits)

    monkeypatch.setattr(tape_reader, "_read_with_status", counting)
    return counted


LOCAL = {"local_epochs": 1, "learning_rate": 0.1}


@pytest.mark.parametrize(
    ("local", "attacks", "leakage"),
    [(None, ATTACKS[:1], False), pytest.param(LOCAL, ATTACKS, True, marks=pytest.mark.slow)],
)
def test_an_audit_with_its_control_and_leakage_reads_each_file_once(tmp_path, reads, local, attacks, leakage):
    taped = tape_federation(tmp_path, defence="precode:latent=8", rounds=2, local=local)
    settings = AuditSettings(attacks=attacks, victims=3, control=True, leakage=leakage)
    record = audit([TapeSource(tape=taped.tape)], settings, out=tmp_path / "audit")
    assert {row.federation for row in record.results} == {"f1", "f1-control"}
    of_the_tape = {str(path) for path in taped.tape.rglob("*.safetensors")}
    assert of_the_tape < reads.keys(), "the control's files are read, too"
    assert set(reads.values()) == {1}


def test_nothing_is_kept_after_an_audit_and_an_altered_update_is_found_by_the_next(tmp_path):
    taped = tape_federation(tmp_path, rounds=1)
    source = TapeSource(tape=taped.tape)
    flp.audit(source, out=tmp_path / "one", attacks=["first-layer"], victims=1)
    assert UPDATES.size == 0
    (first, *_) = sorted((taped.tape / "observations").iterdir())
    content = first.read_bytes()
    first.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    record = flp.audit(source, out=tmp_path / "two", attacks=["first-layer"], victims=1)
    assert any("was altered" in one for one in record.federations[0].tape_problems)
