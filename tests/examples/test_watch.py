"""The example: each newest round of a tape that grows is audited once."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.attacker.growing import GrowingTape
from tests.attacker.taped_federation import tape_federation
from tests.examples.readme_commands import ROOT

PROGRAM = ROOT / "examples" / "watch" / "watch.py"


@pytest.mark.slow  # two audits, each in a process of its own
@pytest.mark.timeout(120)
def test_a_growing_tape_is_audited_round_by_round(tmp_path):
    growing = GrowingTape(tape_federation(tmp_path / "whole", rounds=2), tmp_path / "run")
    command = [sys.executable, PROGRAM, growing.tape, "--out", tmp_path / "watch", "--attacks", "first-layer"]
    with subprocess.Popen([*command, "--until", "2"], stdout=subprocess.PIPE, text=True) as watching:
        growing.grow(1)
        growing.tell_truth()
        for line in watching.stdout:
            if line.startswith("report: "):
                growing.grow(2)
    assert watching.returncode == 0
    rounds = [tmp_path / "watch" / f"round-000{number}" for number in (1, 2)]
    assert sorted((tmp_path / "watch").iterdir()) == rounds
    for number, folder in enumerate(rounds, start=1):
        record = json.loads((folder / "audit.json").read_text())
        assert {one["round"] for one in record["victims"]} == {number}
        assert record["summaries"][0]["successes"] > 0
