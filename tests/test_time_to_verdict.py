"""What a reader waits for is measured on the real command; no test judges a time."""

from __future__ import annotations

import json

from benchmarks.time_to_verdict import FEDERATIONS, seconds_of, table, tape_of, timed


def test_the_plan_of_a_real_tape_is_timed_and_ended_when_it_takes_too_long(tmp_path):
    tape = tape_of("mlp", tmp_path)
    written = (tmp_path / "mlp" / "evaluation.json").stat().st_mtime_ns
    assert tape_of("mlp", tmp_path) == tape
    assert (tmp_path / "mlp" / "evaluation.json").stat().st_mtime_ns == written, "a tape is made once"
    found = timed(["plan", tape, "--budget", "2m", "--attacks", "first-layer"], limit=200)
    assert found["exit"] == 0, found["last"]
    assert 0 < found["first"] <= found["plan"] <= found["end"]
    assert found["verdict"] is None, "a plan judges nothing"
    assert found["silence"] <= found["end"]
    ended = timed(["plan", tape], limit=0.2)
    assert (ended["exit"], ended["plan"]) == (None, None)


def test_a_tape_without_its_images_is_left_out_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.time_to_verdict.SHARED", tmp_path)
    reason = tape_of("epoch", tmp_path)
    assert reason == "it needs medmnist/pneumoniamnist.npz in ../shared/data, which is not there"


def test_the_table_says_what_did_not_end():
    row = {
        "tape": "mlp",
        "budget": "60s",
        "workers": 2,
        "first": 1.0,
        "plan": 4.0,
        "verdict": 5.0,
        "end": 9.0,
        "silence": 2.0,
        "exit": 0,
        "share": 0.15,
    }
    audit = row | {"command": "audit", "end": 63.0, "share": 1.05, "plan": 6.0, "verdict": 8.0}
    rows = [row | {"command": "plan"}, audit, audit | {"end": 65.0, "share": 1.08, "silence": 3.5}]
    rows += [audit | {"tape": "noise", "end": 240.0, "exit": None, "share": 4.0, "plan": None, "verdict": None}]
    content = json.loads(json.dumps({"rows": rows, "skipped": {"epoch": "no images"}}))
    text = table(content)
    assert "| 60s | 2 | 1.0 s | 9.0 s | 6.0 s | 8.0 s | 63.0 to 65.0 s | 108% | 2.0 to 3.5 s |" in text
    assert "| 60s | 2 | 1.0 s | – | – | – | does not end within 240 s | 400% | 2.0 s |" in text
    assert f"| {FEDERATIONS['epoch'].words} | – | – | not run: no images |" in text
    assert [seconds_of(one) for one in ("60s", "5m")] == [60, 300]
