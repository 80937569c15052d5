"""The first verdict comes when the formulas are done, and again when what is shown changes."""

from __future__ import annotations

import pytest

from attacker.audit import so_far
from attacker.audit.audit import audit
from attacker.audit.clock import Clock
from attacker.audit.inputs.tape_source import TapeSource
from attacker.audit.settings import AuditSettings
from tests.attacker.taped_federation import tape_federation

SEARCHES = ("inverting-gradients:iterations=2", "dlg:iterations=2")


@pytest.fixture(scope="module")
def tape(tmp_path_factory):
    return tape_federation(tmp_path_factory.mktemp("run"), model="tests.slow_models:slow(seconds=0.0)", rounds=1).tape


def said_of(tape, out, *attacks, clock=None):
    said: list[str] = []
    settings = AuditSettings(attacks=attacks, victims=2, control=False, budget=600.0, leakage=False, candidates=0)
    record = audit([TapeSource(tape=tape)], settings, out=out, say=said.append, clock=clock)
    return record, [sentence for sentence in said if sentence.startswith("So far")]


def test_the_first_verdict_is_told_before_the_first_search(tape, tmp_path):
    record, (first, *more) = said_of(tape, tmp_path / "audit", "first-layer", *SEARCHES)
    assert "with 1 of 3 attacks done: Images: leaks. 2 of 2 images were reconstructed" in first
    assert first.endswith("The attacks go on.")
    assert more == [], "two more attacks that find nothing change nothing"
    assert [one.verdict for one in record.verdicts] == ["leaks"]
    assert sorted(path.name for path in (tmp_path / "audit").iterdir()) == [
        "audit.json", "campaign", "images", "labels.csv", "results.csv"
    ]  # fmt: skip


def test_what_changes_is_told_again(tape, tmp_path, monkeypatch):
    monkeypatch.setattr(so_far, "_SHARE", 1e9)
    _, told = said_of(tape, tmp_path / "audit", *SEARCHES)
    assert len(told) == 2, "nothing was tried, then one search was"
    assert "after" in told[0]
    assert "0 of 2 attacks done: Images: not known." in told[0]
    assert "1 of 2 attacks done: Images: not " in told[1]


def test_what_costs_more_than_its_share_is_not_worked_out_again(tape, tmp_path, monkeypatch):
    monkeypatch.setattr(so_far, "_SHARE", 0.0)
    _, told = said_of(tape, tmp_path / "audit", *SEARCHES)
    assert len(told) == 1


def test_formulas_that_take_long_are_not_waited_for(tape, tmp_path, monkeypatch):
    monkeypatch.setattr(so_far, "FIRST_BY", 0.0)
    _, (first, *_) = said_of(tape, tmp_path / "audit", "first-layer", *SEARCHES)
    assert "with 0 of 3 attacks done" in first


def test_where_everything_is_done_nothing_goes_on(tape, tmp_path):
    assert said_of(tape, tmp_path / "audit", "first-layer")[1] == []
    assert said_of(tape, tmp_path / "audit", "first-layer")[1] == [], "nor when a finished audit is asked for again"


def test_the_verdict_so_far_changes_nothing_of_the_audit(tape, tmp_path):
    one, _ = said_of(tape, tmp_path / "one", "first-layer", *SEARCHES)
    settings = AuditSettings(
        attacks=("first-layer", *SEARCHES), victims=2, control=False, budget=600.0, leakage=False, candidates=0
    )
    other = audit([TapeSource(tape=tape)], settings, out=tmp_path / "other", clock=Clock(600.0))
    assert [(row.attack, row.ssim, row.matching_loss) for row in one.results] == [
        (row.attack, row.ssim, row.matching_loss) for row in other.results
    ]
