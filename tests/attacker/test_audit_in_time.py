"""Audits whose budget ends before their work: what was found is kept, and the record says what was cut or left out."""

from __future__ import annotations

import io
import time

import pytest

from attacker.audit.campaign import ENDED
from attacker.audit.clock import Clock
from attacker.audit.run import audit, plan
from attacker.audit.settings import AuditSettings
from attacker.audit.subject import TapeSource
from attacker.cli_progress import Ticker
from tests import slow_models
from tests.attacker.taped_federation import tape_federation

LONG = "inverting-gradients:iterations=200000"


def taped(folder, name, **more):
    return tape_federation(folder, model=f"tests.slow_models:{name}", rounds=1, **more).tape


@pytest.fixture(scope="module")
def slow_tape(tmp_path_factory):
    return taped(tmp_path_factory.mktemp("slow"), "slow")


def audited(tape, out, *attacks, budget, said=None, **more):
    settings = AuditSettings(attacks=attacks or None, budget=budget, victims=2, control=False, **more)
    # Named attacks run although they are expected to take longer: the clock ends them, and not the plan.
    return audit([TapeSource(tape=tape)], settings, out=out, say=None if said is None else said.append)


@pytest.fixture
def nothing_is_expected_to_take_long(monkeypatch):
    """As where an estimate is far too low: then the plan does not keep the budget, and the clock has to."""
    monkeypatch.setattr("attacker.audit.plan.measure_unit", lambda *_: 1e-7)


@pytest.mark.usefixtures("nothing_is_expected_to_take_long")
def test_a_search_that_takes_far_too_long_is_ended_and_what_it_found_is_kept(slow_tape, tmp_path):
    began = time.monotonic()
    record = audited(slow_tape, tmp_path / "audit", LONG, budget=2.5)
    assert time.monotonic() - began < 30.0, "not the hour and more that its iterations would take"
    assert [row.outcome for row in record.results] == ["iteration_limit"] * 2
    for row in record.results:
        assert row.cut
        assert row.ssim is not None
        assert 0 < row.iterations < 200_000
        assert row.matching_loss <= row.starting_loss
        assert "its time ended after" in row.reason
    (flag,) = [one for one in record.flags if "was ended by the budget on 2 of 2 images" in one.sentence]
    assert (flag.name, flag.weak) == ("search-cut", True)


@pytest.mark.usefixtures("nothing_is_expected_to_take_long")
@pytest.mark.parametrize("workers", [1, 2])
def test_code_that_never_comes_back_is_stopped_and_has_failed(tmp_path, monkeypatch, workers):
    tape = taped(tmp_path, "hanging")
    monkeypatch.setattr(slow_models, "CALLS_BEFORE_IT_HANGS", [60])
    monkeypatch.setenv("SLOW_MODEL_HANGS_AFTER", "60")
    settings = AuditSettings(
        attacks=(LONG, "first-layer"), budget=2.5 if workers == 1 else 6.0, victims=2, control=False
    )
    record = audit([TapeSource(tape=tape, truth=False)], settings, out=tmp_path / "audit", workers=workers)
    rows = {row.attack: row for row in record.results}
    assert (rows[LONG].outcome, rows[LONG].reason) == ("failed", ENDED)


@pytest.mark.usefixtures("nothing_is_expected_to_take_long")
def test_what_was_not_begun_is_left_out_and_the_same_command_goes_on_with_it(slow_tape, tmp_path, monkeypatch):
    said: list[str] = []
    attacks = (LONG, "first-layer")
    clock = Clock(3.0, began=time.monotonic() - 60.0)  # as if opening had taken all of it
    settings = AuditSettings(attacks=attacks, budget=3.0, victims=2, control=False)
    source = TapeSource(tape=slow_tape)
    with pytest.raises(ValueError, match="has no room for any attack"):
        audit([source], settings, out=tmp_path / "none", clock=clock)
    monkeypatch.setattr(Clock, "attacking", lambda self: 0.0)
    monkeypatch.setattr(Clock, "planned", lambda self: self.budget)
    record = audit([source], settings, out=tmp_path / "audit", say=said.append)
    assert [(one.status, one.updates) for one in record.plan] == [("over_budget", 0)] * 2
    assert all(one.reason.endswith("the budget ended before it was begun") for one in record.plan)
    assert any("The same command goes on with them" in one for one in said)
    assert record.results == []
    monkeypatch.undo()
    record = audit([source], settings, out=tmp_path / "audit")
    assert {one.status for one in record.plan} == {"run"}
    assert {row.attack for row in record.results} == set(attacks)


def test_an_update_that_no_search_can_answer_is_named_at_once(tmp_path):
    tape = taped(tmp_path, "slow(seconds=0.01)", batch_size=32, local={"local_epochs": 2, "learning_rate": 0.1})
    said: list[str] = []
    settings = AuditSettings(budget=5.0, victims=1, control=False)
    _, planned = plan([TapeSource(tape=tape)], settings, say=said.append)
    (sentence,) = said
    assert "No search here can answer this update in its time" in sentence
    assert "images in" in sentence
    assert "a --budget of" in sentence
    given_up = [one for one in planned if one.unanswerable]
    assert "inverting-gradients" in {one.attack for one in given_up}
    assert {(one.status, one.reason) for one in given_up} == {("over_budget", sentence)}
    record = audit([TapeSource(tape=tape)], settings, out=tmp_path / "audit")
    assert record.verdicts[0].verdict == "not known"
    assert sentence.split("local")[0] in record.verdicts[0].sentence


def test_something_is_said_every_moment_until_the_end():
    stream = io.StringIO()
    with Ticker("opening", stream=stream, every=0.05) as ticker:
        ticker.say("Audit.")
        time.sleep(0.3)
        ticker.do("attacking")
        time.sleep(0.3)
    first, *lines = stream.getvalue().splitlines()
    assert first == "Audit."
    assert len(lines) >= 3
    assert lines[0].endswith("opening")
    assert lines[-1].endswith("attacking")
    size = len(stream.getvalue())
    time.sleep(0.15)
    assert len(stream.getvalue()) == size, "it ends with the command"
