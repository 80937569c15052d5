"""The audit of a tape that keeps some updates, read from an object store: record, page and notes say how many."""

from __future__ import annotations

import json

import fsspec
import pytest
from typer.testing import CliRunner

import fl_precode as flp
from attacker.cli.main import app
from attacker.report.pack.answers import audited, received
from tests.attacker.taped_federation import tape_federation

SAID = "4 of 40 updates were kept on the tape (reservoir:n=2)"


@pytest.fixture
def tape(tmp_path, monkeypatch):
    """Two updates in each of two rounds, of twenty that came in."""
    folder = tape_federation(tmp_path / "run", evaluation=False).tape
    with (folder / "manifest.jsonl").open("a") as manifest:
        for number in (1, 2):
            line = {"type": "sampling", "round": number, "seen": 20, "kept": 2, "by": "reservoir:n=2"}
            manifest.write(json.dumps(line) + "\n")
    return folder


@pytest.fixture
def url(tape):
    store = fsspec.filesystem("memory")
    store.put(str(tape), "memory://sampled-audits/tape", recursive=True)
    yield "memory://sampled-audits/tape"
    store.rm("memory://sampled-audits", recursive=True)


def test_the_audit_of_a_sampled_tape_in_a_store_says_how_many_updates_it_has(url, tmp_path):
    record = flp.audit(url, attacks=["first-layer"], victims=2, out=tmp_path / "audit")
    (federation,) = record.federations
    assert (federation.updates, federation.sampled.seen, federation.sampled.by) == (4, 40, "reservoir:n=2")
    assert not federation.tape_problems
    assert all(row.outcome == "converged" for row in record.results)
    page = record.save_report(tmp_path / "page").read_text()
    assert SAID in page
    assert "4 of 40</td>" in page
    (one,) = audited(record)
    assert received(one) == 40


@pytest.mark.parametrize("command", ["notes", "plan"])
def test_commands_read_a_tape_by_its_url(url, command):
    done = CliRunner().invoke(app, [command, url])
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert SAID in said if command == "notes" else f"Plan of an audit of {url}" in said


def test_a_url_without_a_tape_and_one_with_a_password_are_refused(url):
    missing = CliRunner().invoke(app, ["notes", f"{url}-2"])
    assert missing.exit_code
    assert "is no tape" in " ".join(f"{missing.output} {missing.exception}".split())
    secret = CliRunner().invoke(app, ["notes", "s3://key:secret@bucket/tape"])
    assert secret.exit_code
    said = f"{secret.output} {secret.exception}"
    assert "has a password" in said
    assert "key:secret" not in said


def test_a_tape_that_keeps_all_says_nothing_of_sampling(tmp_path):
    folder = tape_federation(tmp_path / "run", evaluation=False).tape
    record = flp.audit(folder, attacks=["first-layer"], victims=1, out=tmp_path / "audit")
    assert record.federations[0].sampled is None
    assert "kept on the tape" not in record.save_report(tmp_path / "page").read_text()
