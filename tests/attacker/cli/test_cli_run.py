"""The commands that start federations: what they refuse, and the demo from end to end."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from attacker.cli.checkout.demo import MARKER, prepare_folder
from attacker.cli.checkout.federation import JobFailed, federation_progress, follow_rounds, keep_and_check
from attacker.cli.checkout.run import parse_settings
from attacker.cli.main import app
from deploy.simulation.submission import RunOutcome

COMMAND = str(Path(sys.executable).parent / "fl-precode")


def invoke(*arguments):
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_settings_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_settings(["a=1", "b = 0.5", "c=x=y", "dataset=npz:own.npz", "data-root=d"]) == {
        "a": 1,
        "b": 0.5,
        "c": "x=y",
        "dataset": f"npz:{tmp_path / 'own.npz'}",
        "data-root": str(tmp_path / "d"),
    }
    assert parse_settings(["dataset=faces"]) == {"dataset": "faces"}


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("num-clients", "KEY=VALUE"),
        ("num-client=3", "num-clients"),
        ("defence=magic", "precode"),
        ("num-clients=many", "whole"),
        ("protocol=fedavg", "exactly"),
    ],
)
def test_wrong_settings_are_bad_usage(tmp_path, setting, words):
    result = invoke("run", "--out", tmp_path / "out", "--set", setting)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["dataset=faces", "num-clients=1000"], "use fewer clients"),
        (["dataset=npz:/nowhere.npz"], "there is no file /nowhere.npz"),
        (["model=tests.foreign_models:convolutions_only", "defence=precode"], "Linear"),
        (["model=tests.foreign_models:three_channels"], "channel"),
    ],
)
def test_what_cannot_run_is_said_before_anything_starts(tmp_path, settings, words):
    options = [part for setting in settings for part in ("--set", setting)]
    result = invoke("run", "--out", tmp_path / "out", *options)
    assert result.exit_code == 1
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_folder_with_a_tape_is_not_written_into(tmp_path):
    (tmp_path / "out" / "tape").mkdir(parents=True)
    result = invoke("run", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "already holds a tape" in result.stderr


def test_a_taken_port_is_said(tmp_path):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        result = invoke("run", "--out", tmp_path / "out", "--set", "dataset=digits", "--port", holder.getsockname()[1])
    assert result.exit_code == 1
    assert "is taken by another program" in result.stderr


def test_the_demo_replaces_its_own_files_and_nothing_else(tmp_path):
    prepare_folder(tmp_path / "new", ["one"])
    for name in ("one/tape", "images", "report", "mine"):
        (tmp_path / "new" / name).mkdir(parents=True)
    prepare_folder(tmp_path / "new", ["one"])
    assert {file.name for file in (tmp_path / "new").iterdir()} == {MARKER, "mine"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    result = invoke("demo", "--out", tmp_path / "other")
    assert result.exit_code == 1
    assert "not of an earlier demo" in result.stderr


def test_progress_follows_the_log(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    with federation_progress("lenet, none", 3) as on_line:
        on_line("INFO : [ROUND 2/3]")
        on_line("INFO : something else")
        time.sleep(0.3)  # the bar is drawn ten times a second
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert re.search(r"federation lenet, none .* 50% round 2 of 3", drawn)
    assert re.search(r"federation lenet, none .* 100% done", drawn)


def test_one_bar_follows_federations_side_by_side():
    told = []
    with follow_rounds(lambda done, text="", note="", *, line=False: told.append((done, note))) as follow:
        one, other = follow("lenet, none", 4), follow("vit, precode", 2)
        one("INFO : [ROUND 3/4]")
        other("INFO : [ROUND 1/2]")
        other("INFO : something else")
    assert told == [
        (0, "starting"),
        (3, "lenet, none: round 3 of 4"),
        (4, "vit, precode: round 1 of 2"),
        (4, "done"),
    ]


def test_a_log_gets_a_line_for_what_is_worth_one(capsys):
    with federation_progress("lenet, none", 3) as on_line:
        on_line("INFO : [ROUND 2/3]")
    assert capsys.readouterr().err.rstrip("\n") == "100% federation lenet, none done", "rich 14.0 adds an empty line"


def test_the_log_of_a_federation_is_private(tmp_path):
    failed = RunOutcome(completed=False, status="", reason="no memory", run_id="1", seconds=0.0, log="text")
    with pytest.raises(JobFailed, match=r"no memory\. The whole log is in .*federation\.log"):
        keep_and_check(failed, tmp_path / "new")
    assert (tmp_path / "new" / "federation.log").read_text() == "text"
    assert (tmp_path / "new" / "federation.log").stat().st_mode & 0o777 == 0o600


@pytest.mark.federation
def test_run_and_audit_as_a_user_does(tmp_path):
    """One real federation through the command line, with FedAvg, and its audit."""
    settings = ["dataset=digits", "protocol=fedavg", "local-steps=1", "model=mlp", "defence=precode", "num-clients=2"]
    options = [part for setting in settings for part in ("--set", setting)]
    done = subprocess.run(
        [COMMAND, "run", "--out", tmp_path / "out", *options, "--set", "num-server-rounds=2"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "out") in done.stdout.replace("\n", "")
    audit = [COMMAND, "audit", tmp_path / "out" / "tape", "--out", tmp_path / "audit", "--attacks", "first-layer"]
    audit += ["--no-leakage"]
    assert subprocess.run(audit, capture_output=True).returncode == 0
    record = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert record["federations"][0]["lost"] == 0
    assert all(row["ssim"] > 0.99 for row in record["results"]), "one local step hides nothing from the division"


class Pictures(HTMLParser):
    """Collects what a page shows."""

    def __init__(self):
        super().__init__()
        self.images, self.text = [], []

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.slow
@pytest.mark.federation
def test_the_demo_shows_its_four_findings(tmp_path):
    done = subprocess.run([COMMAND, "demo", "--out", tmp_path / "demo"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = Pictures()
    page.feed((tmp_path / "demo" / "report" / "index.html").read_text())
    text = " ".join(" ".join(page.text).split())
    assert "Undefended LeNet leaks" in text
    # PRECODE draws its noise from the system: in some demos an attack that ignores it reconstructs an image too.
    says = "(LeNet with PRECODE leaks to an adaptive attacker|PRECODE does not stop the leak on LeNet)"
    assert re.search(f"{says}: 8 of 8 images were reconstructed by inversion through the bottleneck", text)
    assert "PRECODE does not stop the leak on MLP" in text
    assert "PRECODE does not stop the leak on ViT: 4 of 4 images were reconstructed by patch embedding" in text
    assert len(page.images) >= 8 * (2 + 2 + 3 + 3) + 4 * 2
    assert all(image["alt"] for image in page.images)
