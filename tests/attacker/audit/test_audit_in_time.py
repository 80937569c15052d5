"""Audits whose budget ends before their work: what was found is kept, and the record says what was cut or left out."""

from __future__ import annotations

import io
import time

import pytest

from attacker.audit.audit import audit, plan
from attacker.audit.clock import Clock
from attacker.audit.inputs.tape_source import TapeSource
from attacker.audit.settings import AuditSettings
from attacker.cli.progress import Ticker
from attacker.reasons import coded
from tests import slow_models
from tests.attacker.taped_federation import tape_federation

LONG = "inverting-gradients:iterations=200000"


def taped(folder, name, **more):
    return tape_federation(folder, model=f"tests.slow_models:{name}", rounds=1, **more).tape


@pytest.fixture(scope="module")
def slow_tape(tmp_path_factory):
    return taped(tmp_path_factory.mktemp("slow"), "slow")


def audited(tape, out, *attacks, said=None, workers=1):
    settings = AuditSettings(attacks=attacks, budget=600.0, victims=2, control=False)
    say = None if said is None else said.append
    return audit([TapeSource(tape=tape)], settings, out=out, workers=workers, say=say)


@pytest.fixture
def little_time(monkeypatch):
    """Attacks have a second and a half from the first of them on, and no estimate keeps what takes longer out.

    So the clock has to end them, on a machine of any load.
    """
    began: list[float] = []

    def attacking(_clock: Clock) -> float:
        began[:] = began or [time.monotonic()]
        return max(0.0, began[0] + 1.5 - time.monotonic())

    monkeypatch.setattr("attacker.audit.planning.plan.measure_unit", lambda *_: 1e-9)
    monkeypatch.setattr(Clock, "attacking", attacking)
    monkeypatch.setattr(Clock, "planned", lambda clock: clock.budget)


@pytest.mark.usefixtures("little_time")
def test_a_search_that_takes_far_too_long_is_ended_and_what_it_found_is_kept(slow_tape, tmp_path):
    record = audited(slow_tape, tmp_path / "audit", LONG)
    assert [row.outcome for row in record.results] == ["iteration_limit"] * 2
    for row in record.results:
        assert row.cut
        assert row.ssim is not None
        assert 0 < row.iterations < 200_000
        assert row.matching_loss <= row.starting_loss
        assert "time-ended" in row.reason_codes
    (flag,) = [one for one in record.flags if one.name == "search-cut"]
    assert flag.weak


@pytest.mark.usefixtures("little_time")
@pytest.mark.parametrize("workers", [1, 2])
def test_code_that_never_returns_is_stopped_and_has_failed(tmp_path, monkeypatch, workers):
    tape = taped(tmp_path, "hanging")
    monkeypatch.setattr(slow_models, "CALLS_BEFORE_IT_HANGS", [3])
    monkeypatch.setenv("SLOW_MODEL_HANGS_AFTER", "3")
    record = audited(tape, tmp_path / "audit", LONG, workers=workers)
    assert {(row.outcome, *row.reason_codes) for row in record.results} == {("failed", "stopped-by-force")}


def test_what_was_not_begun_is_left_out_and_the_same_command_goes_on_with_it(slow_tape, tmp_path, monkeypatch):
    said: list[str] = []
    attacks = ("inverting-gradients:iterations=2", "first-layer")
    monkeypatch.setattr(Clock, "attacking", lambda _clock: 0.0)
    monkeypatch.setattr(Clock, "planned", lambda clock: clock.budget)
    record = audited(slow_tape, tmp_path / "audit", *attacks, said=said)
    assert [(one.status, one.updates) for one in record.plan] == [("over_budget", 0)] * 2
    assert all(one.reason_codes[0] == "budget-ended" for one in record.plan)
    assert any("The same command goes on with them" in one for one in said)
    assert record.results == []
    monkeypatch.undo()
    record = audited(slow_tape, tmp_path / "audit", *attacks)
    assert {one.status for one in record.plan} == {"run"}
    assert {row.attack for row in record.results} == set(attacks)


def test_an_update_that_no_search_can_answer_is_named_at_once(tmp_path):
    tape = taped(tmp_path, "slow(seconds=0.07)", batch_size=64, local={"local_epochs": 2, "learning_rate": 0.1})
    said: list[str] = []
    settings = AuditSettings(budget=5.0, victims=1, control=False)
    _, planned = plan([TapeSource(tape=tape)], settings, say=said.append)
    (sentence,) = said
    assert coded(sentence).codes == ("unanswerable",)
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
