"""Campaigns that cannot begin or go on: what is said, and what is left behind."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from attacker.audit.execution.checkpoint import CampaignFolder
from attacker.cli.main import app
from attacker.jobs.job import Job
from attacker.jobs.ray_workers import RayCluster, run_text
from attacker.jobs.workers import Processes
from tests.attacker.campaigns import finished
from tests.attacker.taped_federation import tape_federation

QUICK = ("--no-leakage", "--device", "cpu")


@pytest.fixture(scope="module")
def taped(tmp_path_factory):
    return tape_federation(tmp_path_factory.mktemp("run"), rounds=1)


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(one) for one in arguments], env={"COLUMNS": "200"})


def said(result) -> str:
    assert "Traceback" not in result.stderr
    return " ".join((result.stdout + result.stderr).split())


def test_an_audit_that_does_not_begin_leaves_no_folder(tmp_path):
    assert invoke("audit", tmp_path / "nowhere", "--out", tmp_path / "audit").exit_code == 1
    assert not (tmp_path / "audit").exists()


def test_files_that_were_there_stay(tmp_path):
    (tmp_path / "audit" / "campaign").mkdir(parents=True)
    (tmp_path / "audit" / "campaign" / "own.txt").write_text("mine")
    assert invoke("audit", tmp_path / "nowhere", "--out", tmp_path / "audit").exit_code == 1
    assert [one.name for one in (tmp_path / "audit").rglob("*")] == ["campaign", "own.txt"]


def test_a_budget_without_room_names_the_shortest_attack(taped, tmp_path):
    result = invoke("audit", taped.tape, "--out", tmp_path / "audit", "--budget", "0.000001s", "--device", "cpu")
    assert result.exit_code == 1
    assert "a budget of 1e-06 s has no room for any attack: 0 s of it are left for attacks, and the shortest" in said(
        result
    )
    assert not (tmp_path / "audit").exists()


def test_why_an_attack_gave_nothing_is_said(taped, tmp_path):
    result = invoke("audit", taped.tape, "--out", tmp_path / "audit", "--model", "lenet", "--attacks", "first-layer",
                    "--victims", 1, "--device", "cpu")  # fmt: skip
    assert result.exit_code == 3
    assert "attacks: 0 run; 1 not" in said(result)
    assert "first-layer: " in said(result)
    assert "belongs to another model" in said(result)


def test_a_second_audit_in_the_same_folder_is_refused_and_disturbs_nothing(taped, tmp_path):
    with CampaignFolder(tmp_path / "audit"):
        result = invoke("audit", taped.tape, "--out", tmp_path / "audit", "--attacks", "first-layer", "--device", "cpu")
        assert result.exit_code == 1
        assert "another audit is at work in" in said(result)
        assert (tmp_path / "audit" / "campaign" / "lock").exists()


def test_an_audit_of_other_settings_is_set_aside_whole_and_can_be_gone_on_with(taped, tmp_path):
    """Who corrects a setting wants the new audit; what was found before is neither lost nor mixed with it."""
    out = tmp_path / "audit"
    common = ("audit", taped.tape, "--attacks", "first-layer", *QUICK)
    assert invoke(*common, "--out", out).exit_code == 0
    (out / "own.txt").write_text("mine")
    before = {name: content for name, content in files(out).items() if name != "own.txt"}

    result = invoke(*common, "--out", out, "--seed", 3)
    assert result.exit_code == 0
    aside = out / "earlier-1"
    assert f"begun otherwise: seed was 0 and is 3. It is kept in {aside}" in said(result)
    assert stat.S_IMODE(aside.stat().st_mode) == 0o700
    assert files(aside) == before
    assert (out / "own.txt").read_text() == "mine"
    assert json.loads((out / "audit.json").read_text())["seeds"]["audit"] == 3

    kept = finished(aside)
    again = invoke(*common, "--out", aside)
    assert again.exit_code == 0
    assert "begun otherwise" not in said(again)
    assert finished(aside) == kept

    assert invoke(*common, "--out", out, "--seed", 4).exit_code == 0
    assert json.loads((out / "earlier-2" / "audit.json").read_text())["seeds"]["audit"] == 3


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(one.relative_to(folder)): one.read_bytes()
        for one in folder.rglob("*")
        if one.is_file() and not str(one.relative_to(folder)).startswith("earlier")
    }


@pytest.mark.parametrize("how", ["option", "notes"])
def test_a_corrected_model_gets_results_of_its_own(tmp_path, how):
    """The update is of an MLP, and the tape said that it is of a LeNet."""
    taped = tape_federation(tmp_path, rounds=1)
    header = json.loads((taped.tape / "tape.json").read_text())
    (taped.tape / "tape.json").write_text(json.dumps(header | {"model": "lenet"}))
    common = ("audit", taped.tape, "--out", tmp_path / "audit", "--attacks", "first-layer", "--no-truth", *QUICK)
    wrong = invoke(*common)
    assert wrong.exit_code == 3
    assert "attacks: 0 run; 1 not" in said(wrong)
    assert 'model = "package.module:factory"' in said(wrong)
    if how == "notes":
        (tmp_path / "tape.toml").write_text('model = "mlp"\n')
    right = invoke(*common, *(["--model", "mlp"] if how == "option" else []))
    assert right.exit_code == 0
    assert "begun otherwise" in said(right)
    record = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert {one["outcome"] for one in record["results"]} == {"converged"}
    old = json.loads((tmp_path / "audit" / "earlier-1" / "audit.json").read_text())
    assert {one["outcome"] for one in old["results"]} == {"not_applicable"}


def test_an_audit_that_needs_a_control_does_not_look_for_that_of_an_earlier_one(tmp_path):
    taped = tape_federation(tmp_path, defence="precode:latent=8", rounds=1)
    common = ("audit", taped.tape, "--out", tmp_path / "audit", "--attacks", "first-layer", *QUICK)
    assert invoke(*common, "--no-control").exit_code == 0
    controls = tmp_path / "audit" / "campaign" / "controls"
    assert not controls.exists()
    right = invoke(*common)
    assert right.exit_code == 0, said(right)
    assert "control was False and is True" in said(right)
    assert (controls / "f1" / "tape.json").exists()


def test_what_is_set_aside_stays_locked_and_a_lock_that_moved_counts_as_taken(tmp_path):
    with CampaignFolder(tmp_path / "audit") as campaign:
        campaign.begin({"seed": 0}, [])
        old = os.open(campaign.folder / "lock", os.O_RDWR)  # as a process that opened it a moment before
        aside = campaign.set_aside()
        for folder in (aside, tmp_path / "audit"):
            with pytest.raises(ValueError, match="another audit is at work"):
                CampaignFolder(folder).__enter__()
        with pytest.raises(BlockingIOError):
            fcntl.flock(old, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(old)
        campaign.begin({"seed": 1}, [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "2", "--ray-address", "auto"], "either --workers"),
        (["--ray-address", "local"], "expected HOST:PORT of a Ray cluster"),
        (["--ray-address", "ray://somewhere:1"], "expected HOST:PORT of a Ray cluster"),
        (["--no-truth", "--evaluation", "evaluation.json"], "either a file of the truth or --no-truth"),
    ],
)
def test_contradictory_options_are_bad_usage(taped, tmp_path, arguments, message):
    result = invoke("audit", taped.tape, "--out", tmp_path / "audit", *arguments)
    assert result.exit_code == 2
    assert message in said(result)
    assert not (tmp_path / "audit").exists()


def test_no_cluster_is_said_at_once(taped, tmp_path):
    pytest.importorskip("ray")
    with socket.socket() as probe:  # bound and not listening: nobody else takes the port, and nobody answers
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        result = invoke("audit", taped.tape, "--out", tmp_path / "audit", "--attacks", "first-layer", "--device", "cpu",
                        "--ray-address", address)  # fmt: skip
    assert result.exit_code == 1
    assert f"there is no Ray cluster to work with at '{address}'" in said(result)
    assert "ray start --head" in said(result)


def test_a_node_that_does_not_see_the_folder_says_so(tmp_path):
    text = run_text(Job(id="c", work="attacker.audit.execution.work:ATTACK").to_json(), str(tmp_path / "elsewhere"))
    assert "is not there on this node of the Ray cluster" in text
    assert "storage that all nodes share" in text
    assert not (tmp_path / "elsewhere").exists()


def test_what_ray_finds_wrong_is_not_counted_as_a_failed_attack(tmp_path):
    """Only a task that was lost is begun again; one that cannot even be started ends the campaign, with the reason."""
    ray = pytest.importorskip("ray")
    crew = RayCluster("auto", tmp_path)
    crew._ray = ray
    assert crew._was_lost(ray.exceptions.WorkerCrashedError())
    assert crew._was_lost(ray.exceptions.OutOfMemoryError("memory"))
    assert not crew._was_lost(ray.exceptions.RuntimeEnvSetupError("no such folder"))
    assert not crew._was_lost(ray.exceptions.RayTaskError("run_text", "ModuleNotFoundError", ImportError("attacker")))


def test_a_full_disk_names_the_file_and_what_was_finished_is_kept(taped, tmp_path, monkeypatch):
    out = tmp_path / "audit"
    common = ("audit", taped.tape, "--out", out, "--attacks", "first-layer", "--device", "cpu")

    def full(_descriptor: int) -> None:
        if list(out.rglob("images")):  # the attack's results fit, the pictures do not
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        result = invoke(*common)
    assert result.exit_code == 1
    assert re.search(r"Error: \S*images/\S+\.png: no space left on the disk; make room", said(result))
    assert not list(out.rglob("*.part"))
    kept = finished(out)
    assert kept
    assert invoke(*common).exit_code == 0
    assert finished(out) == kept


def test_without_jinja_the_extra_is_named(tmp_path):
    """As in a base install: the module is not there at all."""
    (tmp_path / "audit.json").write_text("{}")
    code = "import sys; sys.modules['jinja2'] = None; from attacker.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "report", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "Error: this needs jinja2, which is not installed: pip install 'fl-precode[audit]'\n"


def test_ctrl_c_is_for_the_campaign_and_not_for_its_workers(tmp_path):
    """A terminal sends it to all; workers would each print where they were."""
    with Processes(1, tmp_path) as crew:
        crew.begin(Job(id="j", work="tests.nowhere:WORK"))
        status = Path(f"/proc/{crew.pids[0]}/status").read_text()
    blocked = int(re.search(r"SigBlk:\s*(\w+)", status)[1], 16)
    assert blocked >> (signal.SIGINT - 1) & 1
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.parametrize(("ends", "words"), [("os._exit(1)", 1), ("words.communicate(b'done')", 0)])
def test_an_audit_that_ray_ends_has_last_words(ends, words):
    """Ray ends its driver from C++ when its node is lost: no exception, no `finally`."""
    code = (
        "import os, subprocess, sys; from attacker.jobs.ray_workers import _LAST_WORDS\n"
        f"words = subprocess.Popen([sys.executable, '-c', _LAST_WORDS], stdin=subprocess.PIPE); {ends}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr.count("What was finished is kept") == words
