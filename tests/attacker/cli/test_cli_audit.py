from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from attacker.attacks.registry import ATTACKS
from attacker.cli.main import app
from attacker.cli.options import parse_inputs
from fl_precode.data import DATASETS
from fl_precode.defences.registry import DEFENCES
from fl_precode.models import MODELS
from tests.attacker.taped_federation import tape_federation

QUICK = "first-layer,inverting-gradients:iterations=2,restarts=1"


@pytest.fixture(scope="module")
def taped(tmp_path_factory):
    return tape_federation(tmp_path_factory.mktemp("run"), rounds=1)


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "80"})


def paragraph(result) -> str:
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr.split())


def test_audit_and_report_from_the_command_line(taped, tmp_path):
    out = tmp_path / "audit"
    result = invoke("audit", taped.tape, "--out", out, "--attacks", QUICK, "--victims", 2, "--labels", "granted",
                    "--device", "cpu")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "2 of 2" in result.stdout
    assert "Training images were reconstructed from this federation's updates." in result.stdout
    assert result.stdout.rstrip().endswith(f"report: {out / 'report' / 'index.html'}")
    record = json.loads((out / "audit.json").read_text())
    assert [attack["spec"] for attack in record["attacks"]] == ["first-layer", QUICK.partition(",")[2]]
    assert record["settings"]["labels"] == "granted"
    assert record["settings"]["device"] == "cpu"

    again = invoke("report", out / "audit.json", "--out", tmp_path / "again")
    assert again.exit_code == 0
    assert again.stdout == f"report: {tmp_path / 'again' / 'index.html'}\n"
    assert (tmp_path / "again" / "index.html").read_text() == (out / "report" / "index.html").read_text()


def test_the_installed_program_and_its_exit_codes(taped, tmp_path):
    program = Path(sys.executable).parent / "fl-precode"
    arguments = [program, "audit", taped.tape, "--out", tmp_path / "a", "--attacks", "first-layer", "--victims", "1"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a" / "report" / "index.html").exists()
    failed = subprocess.run(
        [program, "audit", tmp_path], capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path
    )
    assert failed.returncode == 1
    assert failed.stderr.startswith("Error: ")
    assert "Traceback" not in failed.stderr


def test_a_foreign_folder_and_a_truncated_tape_are_one_readable_paragraph(taped, tmp_path):
    result = invoke("audit", tmp_path / "nowhere")
    assert result.exit_code == 1
    assert "is not a folder" in paragraph(result)
    (tmp_path / "tape").mkdir()
    (tmp_path / "tape" / "tape.json").write_bytes((taped.tape / "tape.json").read_bytes()[:40])
    result = invoke("audit", tmp_path / "tape")
    assert result.exit_code == 1
    assert re.match(r"Error: .*tape\.json is not JSON", paragraph(result))
    (tmp_path / "tape" / "tape.json").write_bytes((taped.tape / "tape.json").read_bytes())
    result = invoke("audit", tmp_path / "tape", "--no-truth", "--out", tmp_path / "a")
    assert result.exit_code == 1
    assert "has nothing to attack" in paragraph(result)


def test_a_tape_of_another_run_is_refused(taped, tmp_path):
    other = tape_federation(tmp_path / "other", rounds=1, batch_size=2)
    result = invoke("audit", taped.tape, "--evaluation", other.folder / "evaluation.json", "--out", tmp_path / "a")
    assert result.exit_code == 1
    assert "is from another run than the tape: batch-size is 1 on the tape and 2 in the file" in paragraph(result)
    result = invoke("audit", taped.tape, "--evaluation", tmp_path / "absent.json")
    assert result.exit_code == 1
    assert "absent.json: there is no such file or folder" in paragraph(result)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attacks", "magic"], "there is no attack 'magic'"),
        (["--attacks", "first-layer,first-layer"], "one or more different attacks"),
        (["--attacks", "inverting-gradients:iterations=0"], "iterations"),
        (["--victims", "0"], "0 is not in the range"),
        (["--labels", "some"], "'some' is not one of"),
        (["--input", "32x32", "--classes", "10"], "expected channels x height x width"),
        (["--input", "3x8x8"], "--input needs --classes"),
        (["--classes", "10"], "describe the images of --input"),
        (["--input", "3x8x8", "--classes", "10", "--mean", "a"], "numbers set apart by commas"),
        (["--input", "3x8x8", "--classes", "10", "--std", "1,2"], "one std for each of 3 channels"),
        (["--device", "warp"], "take --device auto or --device cpu"),
        (["--device", "meta"], "expected a device that computes on this machine, got 'meta'"),
        (["--nonsense"], "No such option"),
    ],
)
def test_bad_usage_is_2_and_nothing_is_written(taped, tmp_path, arguments, message):
    result = invoke("audit", taped.tape, "--out", tmp_path / "audit", *arguments)
    assert result.exit_code == 2
    plain = re.sub(r"[│╭╮╰╯─]", " ", result.stderr)
    assert message in " ".join(plain.split())
    assert not (tmp_path / "audit").exists()


def test_debug_shows_the_traceback(tmp_path):
    result = invoke("--debug", "audit", tmp_path / "nowhere")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "TapeError" in result.stderr


def test_an_unwritable_place_is_an_error_of_the_job(taped, tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = invoke("audit", taped.tape, "--out", tmp_path / "file", "--attacks", "first-layer")
    assert result.exit_code == 1
    assert "file" in paragraph(result)


def test_interruption_is_130_with_one_line(taped, tmp_path, monkeypatch):
    def interrupt(*_arguments: object, **_settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("attacker.audit.audit.audit", interrupt)
    result = invoke("audit", taped.tape, "--out", tmp_path)
    assert result.exit_code == 130
    assert result.stderr.strip().splitlines()[-1] == "Interrupted; the job was not finished."


def test_defects_are_told_from_errors_of_the_user(taped, tmp_path, monkeypatch):
    def fail(*_arguments: object, **_settings: object) -> None:
        raise KeyError("round")

    monkeypatch.setattr("attacker.audit.audit.audit", fail)
    result = invoke("audit", taped.tape, "--out", tmp_path)
    assert result.exit_code == 1
    assert "something unexpected happened (KeyError: 'round')" in paragraph(result)


def test_a_report_of_something_else_is_refused(tmp_path):
    (tmp_path / "audit.json").write_text("{}")
    result = invoke("report", tmp_path)
    assert result.exit_code == 1
    assert "is not an audit record" in paragraph(result)


@pytest.mark.parametrize(
    ("command", "registry"),
    [("models", MODELS), ("datasets", DATASETS), ("attacks", ATTACKS), ("defences", DEFENCES)],
)
def test_lists_have_one_line_for_each_entry(command, registry):
    result = invoke(command)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    own = {
        "datasets": ["npz:PATH", "folder:PATH"],
        "models": ["package.module:factory", "package.module:Net(depth=3)"],
    }.get(command, [])
    assert [line.split()[0] for line in lines] == [*registry, *own]
    assert all(entry.description in line for line, entry in zip(lines, registry.values(), strict=False))
    assert all(getattr(entry, "source", "") in line for line, entry in zip(lines, registry.values(), strict=False))


def test_help_fits_80_columns_and_names_every_command():
    result = invoke("--help")
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    for command in ("run", "demo", "audit", "report", "models", "datasets", "attacks", "defences"):
        assert re.search(rf"^│ {command} ", result.stdout, re.MULTILINE)
        assert invoke(command, "--help").exit_code == 0


def test_help_does_not_wait_for_torch():
    heavy = "{'torch', 'numpy', 'flwr', 'pydantic'}"
    code = f"import sys; import attacker.cli.main; sys.exit(len({heavy} & sys.modules.keys()))"
    started = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
    assert time.monotonic() - started < 10  # generous: other tests may run beside it


def test_version():
    result = invoke("--version")
    assert result.exit_code == 0
    assert re.fullmatch(r"fl-precode \d+\.\d+\.\d+\n", result.stdout)


def test_input_domains_from_text():
    spec = parse_inputs("3x32x16", 10, "0.5,0.4,0.3", None)
    assert (spec.shape, spec.classes, spec.mean, spec.std) == ((3, 32, 16), 10, (0.5, 0.4, 0.3), (1.0, 1.0, 1.0))
    assert parse_inputs(None, None, None, None) is None
    with pytest.raises(typer.BadParameter):
        parse_inputs("3x32x16", None, None, None)


class _Interrupted:
    def __set_name__(self, owner, name):
        raise KeyboardInterrupt


def test_ctrl_c_while_a_class_is_made_is_ctrl_c(monkeypatch, tmp_path):
    """As during the imports of a command: Python 3.11 wraps what `__set_name__` raises in a RuntimeError."""
    monkeypatch.setattr(
        "attacker.audit.inputs.tape_source.Tape", lambda *_, **__: type("Made", (), {"field": _Interrupted()})
    )
    result = CliRunner().invoke(app, ["plan", str(tmp_path)])
    assert result.exit_code == 130
    assert "Interrupted" in result.stderr
