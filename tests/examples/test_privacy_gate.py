"""The workflow for continuous integration: its commands are ours, and its gate stops what leaks."""

from __future__ import annotations

import re
import shlex
import xml.etree.ElementTree as ElementTree

import pytest
import typer
import yaml
from typer.testing import CliRunner

from attacker.audit.inputs.tape_source import TapeSource
from attacker.cli.main import app
from tests.attacker.audits import audit_tapes
from tests.attacker.taped_federation import tape_federation
from tests.examples.readme_commands import ROOT

STEPS = yaml.safe_load((ROOT / "examples" / "privacy-gate" / "privacy-audit.yml").read_text())["jobs"]["audit"]["steps"]
COMMANDS = [step["run"] for step in STEPS if step.get("run", "").startswith("fl-precode ")]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_taken(line):
    group = typer.main.get_command(app)
    name, *arguments = shlex.split(line)[1:]
    command = group.commands[name]
    context = command.make_context(name, list(arguments))
    assert not context.args


@pytest.mark.parametrize(("model", "attack"), [("mlp", "first-layer"), ("lenet", "inverting-gradients:iterations=2")])
def test_the_gate_stops_what_leaks_and_what_was_not_shown(tmp_path, monkeypatch, model, attack):
    """Of the second federation nothing is reconstructed, from four victims and by one short search: no evidence."""
    monkeypatch.chdir(tmp_path)
    tape = tape_federation(tmp_path / "run", model=model, defence="precode").tape
    record = audit_tapes([TapeSource(tape=tape)], out=tmp_path / "audit", attacks=[attack])
    (gate,) = (line for line in COMMANDS if line.startswith("fl-precode check"))
    done = CliRunner().invoke(app, shlex.split(gate)[1:])
    assert done.exit_code == 1, done.output
    failures = ElementTree.parse(tmp_path / "audit" / "junit.xml").getroot().findall(".//failure")
    leaks = record.summaries[0].successes > 0
    assert leaks == (model == "mlp")
    words = [(one.text or "") + one.get("message", "") for one in failures]
    assert any(re.search(r"\b[1-9]\d* of \d+ images? (was|were) reconstructed", one) for one in words) == leaks, words
    assert failures


def test_images_are_not_uploaded():
    (upload,) = (step for step in STEPS if step.get("uses", "").startswith("actions/upload"))
    paths = upload["with"]["path"].split()
    assert "audit/report-redacted/index.html" in paths
    assert not [path for path in paths if path.startswith(("run", "audit/images", "audit/report/")) or path == "audit"]
