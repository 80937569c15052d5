"""Audits while training runs: real processes, and training that is the same with and without them."""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress

import psutil
import pytest

from fl_precode.federation.config import Settings, SettingsError
from server.audits import COMMAND, AuditRuns


def models(out):
    return [one["model_sha256"] for one in json.loads((out / "result.json").read_text())["rounds"]]


@pytest.fixture
def started():
    """What this process has started since; the rest of the suite may have left a resource tracker."""
    before = set(psutil.Process().children())
    return lambda: set(psutil.Process().children()) - before


@pytest.fixture
def command(monkeypatch):
    """Replaces the program that audits."""

    def replace(*arguments: str) -> None:
        monkeypatch.setattr(AuditRuns.__init__, "__kwdefaults__", {"output_dir": "", "command": arguments})

    return replace


def test_rounds_are_audited_while_training_runs_and_training_is_the_same(run_locally, tmp_path, command, started):
    # At its low priority a minute may be over on a busy machine before the tape is open.
    command(*COMMAND, "--budget", "10m", "--attacks", "first-layer", "--device", "cpu")
    _, out = run_locally(out="audited", tape=str(tmp_path / "audited" / "tape"), audit_every=2, model="mlp")
    _, same = run_locally(out="same", model="mlp")
    assert models(out) == models(same)
    audited = out / "audits" / "round-0002"
    assert (audited / "audit.json").exists(), (audited / "audit.log").read_text()
    record = json.loads((audited / "audit.json").read_text())
    assert {row["round"] for row in record["results"]} == {1, 2}
    assert all(row["ssim"] > 0.99 for row in record["results"])
    assert not started()


def test_an_audit_that_fails_leaves_training_unharmed(run_locally, tmp_path, command, caplog):
    command(sys.executable, "-c", "import sys; print('no'); sys.exit(3)")
    _, out = run_locally(tape=str(tmp_path / "tape"), audit_every=1)
    content = json.loads((out / "result.json").read_text())
    assert content["finished"]
    assert "failed with code 3" in caplog.text
    assert (out / "audits" / "round-0001" / "audit.log").read_text().splitlines()[-1] == "no"


def test_a_program_that_is_not_there_is_a_warning(tmp_path, caplog):
    runs = AuditRuns(every=1, tape=str(tmp_path / "tape"), command=(str(tmp_path / "absent"),))
    runs.after_round(1)
    assert "no audit after round 1: FileNotFoundError" in caplog.text


def test_audits_do_not_pile_up_and_the_last_one_is_stopped(tmp_path, caplog, started):
    sleeping = (sys.executable, "-c", "import time; time.sleep(600)")
    began = time.monotonic()
    with suppress(KeyError), AuditRuns(every=2, tape=str(tmp_path / "tape"), command=sleeping) as runs:
        for number in range(6):
            runs.after_round(number)
        assert len(started()) == 1
        raise KeyError("training failed")
    assert "no audit after round 4: that of round 2 is at work" in caplog.text
    assert [one.name for one in (tmp_path / "audits").iterdir()] == ["round-0002"]
    assert time.monotonic() - began < 60
    assert not started()


def test_an_audit_takes_up_the_rounds_since_the_last_one(tmp_path):
    quick = (sys.executable, "-c", "pass")
    runs = AuditRuns(every=1, tape=str(tmp_path / "tape"), command=quick)
    for number in (1, 2):
        runs.after_round(number)
        runs.finish(60)
    logs = [(tmp_path / "audits" / f"round-{number:04d}" / "audit.log").read_text() for number in (1, 2)]
    assert ["--rounds 1:1" in logs[0], "--rounds 2:2" in logs[1]] == [True, True]


def test_rounds_that_were_passed_over_are_audited_at_the_end(tmp_path):
    waiting = (
        sys.executable,
        "-c",
        f"import time, os\nwhile not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(.1)",
    )
    with AuditRuns(every=1, tape=str(tmp_path / "tape"), command=waiting) as runs:
        for number in (1, 2, 3):
            runs.after_round(number)
        (tmp_path / "go").touch()
    assert sorted(one.name for one in (tmp_path / "audits").iterdir()) == ["round-0001", "round-0003"]
    assert "--rounds 2:3" in (tmp_path / "audits" / "round-0003" / "audit.log").read_text()


def test_without_a_tape_there_is_nothing_to_audit():
    with pytest.raises(SettingsError, match="audit-every: nobody listens"):
        Settings(audit_every=1)
    with pytest.raises(SettingsError, match="audit-every: expected at least 0"):
        Settings(audit_every=-1)
