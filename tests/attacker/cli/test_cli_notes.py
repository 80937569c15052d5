"""What is known, assumed and missing about a tape, and what is said about attacks that do not run."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from attacker.attacks.registry import ATTACKS
from attacker.audit.audit import plan
from attacker.audit.inputs.tape_source import TapeSource
from attacker.audit.planning.mending import TRIALS
from attacker.audit.record.mends import MENDS
from attacker.audit.record.schema import AssumptionEntry
from attacker.audit.settings import AuditSettings
from attacker.cli.main import app
from attacker.cli.reasons import NotRun, assumption_lines, reason_lines, toml_lines
from fl_precode.models.input_spec import InputSpec
from fl_precode.observation import Protocol
from fl_precode.tape import TapeHeader, TapeWriter
from tests.attacker.taped_federation import tape_federation

DIGITS = InputSpec(channels=1, height=8, width=8, classes=10, mean=(0.0,), std=(1.0,))


def invoke(*arguments: object, columns: int = 80):
    return CliRunner().invoke(app, [str(one) for one in arguments], env={"COLUMNS": str(columns)})


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture
def two_steps(tmp_path):
    """Weights after two local steps, whose learning rate nobody says."""
    protocol = Protocol(name="fedavg", local_steps=2, batch_size=1, loss="cross-entropy")
    header = TapeHeader(model="mlp", defence="none", kind="weights", protocol=protocol, inputs=DIGITS)
    return tape_federation(tmp_path, rounds=1, header=header, evaluation=False, local={"local_steps": 2}).tape


def test_the_line_that_mends_is_found_by_trying_it(two_steps):
    settings = AuditSettings(budget=1e6, control=False)
    _, planned = plan([TapeSource(tape=two_steps)], settings, estimate=False)
    mends = {one.attack.partition(":")[0]: one.mends for one in planned}
    assert mends["dlg"] == mends["idlg"] == ["learning-rate"]
    assert mends["inverting-gradients"] == []  # it runs: directions need no rate
    assert mends["first-layer"] == mends["layerwise-inversion"] == []  # two steps are no one step at any rate
    assert mends["ignore"] == []  # there is no defence


def test_a_line_as_it_is_printed_lets_the_attacks_run(two_steps):
    result = invoke("notes", two_steps)
    assert result.exit_code == 0, result.output
    said = flat(result.stdout)
    assert "local training local-steps 2, batch-size 1" in said
    assert f"- {MENDS['learning-rate'].lacking} (2 attacks)" in said
    block = result.stdout[result.stdout.index("[protocol]") :]
    two_steps.with_name("tape.toml").write_text("\n".join(line.strip() for line in block.splitlines()[:3]))
    again = invoke("notes", two_steps)
    assert "learning-rate 0.1" in flat(again.stdout)
    assert "Missing" not in again.stdout


def test_a_tape_that_says_nothing_asks_for_the_model_and_the_images_first(tmp_path):
    tape = tape_federation(tmp_path, rounds=1, header=TapeHeader(kind="gradient"), evaluation=False).tape
    for command in (("notes",), ("plan",), ("audit", "--out", tmp_path / "audit")):
        result = invoke(command[0], tape, *command[1:])
        assert result.exit_code == 3, result.output
        assert "attacks: 0 run" in result.stdout
        block = result.stdout[result.stdout.index("      #") : result.stdout.index("  Or give")]
        asked = tomllib.loads(block)
        assert asked == {"model": "package.module:factory", "input": "3x32x32", "classes": 10}
    assert not (tmp_path / "audit").exists()
    given = ("--model", "mlp", "--input", "1x8x8", "--classes", 10)
    result = invoke("notes", tape, *given)
    assert result.exit_code == 0
    assert "images 1x8x8, 10 classes; their mean and deviation not known" in flat(result.stdout)
    assert f"- {MENDS['scale'].lacking}; without it the audit estimates it." in flat(result.stdout)
    assert "- could run: first-layer" in result.stdout


def test_an_update_of_another_model_asks_for_the_model(tmp_path):
    tape = tape_federation(tmp_path, rounds=1, evaluation=False).tape
    result = invoke("notes", tape, "--model", "lenet")
    assert result.exit_code == 3
    assert "attacks: 0 could run" in result.stdout
    assert f"- {MENDS['model'].lacking} (" in flat(result.stdout)


def empty_tape(folder, *reasons):
    writer = TapeWriter(folder, TapeHeader(model="mlp", inputs=DIGITS))
    assert writer.write_round(1, {"weight": np.zeros(3, dtype=np.float32)})
    for node, reason in enumerate(reasons):
        assert writer.write_failure(1, str(node), reason)
    return folder


@pytest.mark.parametrize("command", ["audit", "plan", "notes"])
def test_masked_replies_are_a_working_run_without_an_update(tmp_path, command):
    tape = empty_tape(tmp_path / "tape", *["no update to attack: masked_params are masked for secure aggregation"] * 3)
    result = invoke(command, tape)
    assert result.exit_code == 3
    assert "Masked, no update: the tape" in flat(result.stdout)
    assert "holds 3 masked replies of secure aggregation" in flat(result.stdout)
    assert "Error" not in result.output
    assert "failed" not in flat(result.stdout).partition("attacks: 0 run")[2]


def test_a_tape_without_updates_says_what_it_holds(tmp_path):
    tape = empty_tape(tmp_path / "tape", "disk full", "disk full", "no GPU")
    result = invoke("audit", tape, "--out", tmp_path / "audit")
    assert result.exit_code == 1
    assert (
        "it holds no client update, but what the server sent in 1 round and 3 failed replies (2 times: disk full)"
        in flat(result.stderr)
    )


def test_what_a_line_mends_comes_first_and_what_is_made_for_something_else_last():
    found = [
        NotRun(attack="ignore", reason="another defence", optional=True),
        NotRun(attack="spear", reason="it needs a Linear layer"),
        NotRun(attack="dlg:iterations=3", reason="no batch size", mends=("local-epochs",)),
        NotRun(attack="first-layer", reason="it needs a Linear layer"),
        NotRun(attack="hybrid", reason="no time", mends=("budget",)),
        NotRun(attack="idlg", reason="none either", mends=("local-epochs",)),
    ]
    lines = reason_lines(found, None, width=80)
    assert [line for line in lines if line.startswith("- ")] == [
        "- dlg, idlg: not known: how many images are behind an update.",
        "- spear, first-layer: it needs a Linear layer.",
        "- hybrid: expected to take longer than the budget leaves.",
        "- ignore: another defence.",
    ]
    place = lines.index("- dlg, idlg: not known: how many images are behind an update.")
    assert lines[place + 2].strip() == "[protocol]"
    assert lines[place + 4].strip() == "local-epochs = 1"


def test_lines_below_a_table_that_is_there_do_not_begin_it_again(tmp_path):
    notes = tmp_path / "tape.toml"
    wanted = [('model = "a:b"', ""), ("[protocol]\nlocal-epochs = 1", "how often")]
    assert tomllib.loads("\n".join(toml_lines(wanted, notes, indent=""))) == {
        "model": "a:b",
        "protocol": {"local-epochs": 1},
    }
    notes.write_text("[protocol]\n")
    assert "[protocol]" not in toml_lines(wanted, notes, indent="")


def test_an_assumption_is_shown_with_its_doubt_and_its_line():
    one = AssumptionEntry(
        code="one-pass",
        sentence="one pass was assumed",
        doubt="more steps",
        line="[protocol]\nlocal-epochs = 1",
        updates=2,
    )
    text = "\n".join(assumption_lines(one, 4, None, 80))
    assert flat(text) == (
        "- one-pass: one pass was assumed (2 of 4 updates looked at) What would show it wrong: more steps "
        "To settle it: [protocol] local-epochs = 1"
    )


def test_nothing_is_wider_than_80_columns_and_no_name_is_broken(tmp_path):
    """Also where the output is no terminal, and with attacks whose specs are longer than a line."""
    taped = tape_federation(tmp_path, rounds=1)
    header = json.loads((taped.tape / "tape.json").read_text())
    assert header["model"] == "mlp"
    long = "inverting-gradients:preset=precode-paper,iterations=2,learning_rate=0.07,restarts=2"
    common = (taped.tape, "--attacks", long, "--device", "cpu")
    audited = invoke("audit", *common, "--out", tmp_path / "audit", "--no-leakage")
    planned = invoke("plan", taped.tape, "--device", "cpu")
    asked = invoke("notes", taped.tape)
    for result in (audited, planned, asked):
        assert result.exit_code == 0, result.output
        own = [line for line in result.stdout.splitlines() if str(tmp_path) not in line]
        assert max(map(len, own)) <= 80
    assert "  preset=precode-paper," in audited.stdout
    for name in ATTACKS:
        assert name in planned.stdout
    assert "Audit of 2 updates: 1 attack" in flat(audited.stderr)


def test_codes_of_mends_that_are_told_change_the_protocol():
    for code, trial in TRIALS.items():
        told = {key: value for key, value in vars(trial.told(Protocol())).items() if value is not None}
        key = code.replace("-", "_")
        assert told == {"name": "unknown", key: getattr(replace(Protocol(), **{key: told[key]}), key)}
        assert tomllib.loads(MENDS[code].line)["protocol"].keys() == {code}
