"""What the launcher refuses, and how it reads a run's end. Real runs are in test_federation.py."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tomllib
import uuid
from importlib.metadata import version

import pytest
import torch

from deploy.simulation.launch import SimulationRuntime, check_machine, failure_reason, launch, to_toml
from deploy.simulation.processes import TOKEN_VARIABLE, end_processes, launched_processes
from deploy.simulation.programs import write_programs
from deploy.simulation.superlink import CONNECTION, LaunchError, OwnedSuperLink
from fl_precode.federation.config import Settings


def test_a_taken_port_is_refused():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        with pytest.raises(LaunchError, match="is taken"), OwnedSuperLink(port=holder.getsockname()[1]):
            pass


def test_colours_that_a_notebook_wants_do_not_get_into_flowers_answers(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("CLICOLOR_FORCE", "1")
    with OwnedSuperLink() as superlink:
        said, _ = superlink.flwr("ls", CONNECTION, "--format", "json").communicate(timeout=120)
    assert json.loads(said)["runs"] == []


def test_an_incomplete_app_is_refused(tmp_path):
    with pytest.raises(LaunchError, match="server, clients missing"), SimulationRuntime(app=_partial_app(tmp_path)):
        pass


def _partial_app(folder):
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        (folder / name).touch()
    (folder / "fl_precode").mkdir()
    return folder


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_clients": 400}, "400"),
        ({"dataset": "npz:/nowhere.npz"}, "nowhere"),
        ({"model": "collections:OrderedDict"}, "OrderedDict"),
        ({"model": "tests.foreign_models:convolutions_only", "defence": "precode"}, "Linear"),
        ({"model": "tests.foreign_models:three_channels"}, "channel"),
        ({"model": "tests.foreign_models:Locked"}, "Locked cannot be copied: TypeError.*locks"),
        ({"loss": "tests.fl_precode.some_losses:for_each_image"}, "expected a scalar"),
    ],
)
def test_what_cannot_work_is_refused_before_a_process_starts(settings, words, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)  # starting anything would be a TypeError
    with pytest.raises((ValueError, RuntimeError), match=words):
        launch(Settings(**settings))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ValueError, match="no CUDA device"):
        check_machine(Settings(device="cuda"), 0)
    with pytest.raises(ValueError, match="this machine has 0"):
        check_machine(Settings(), 0.5)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    check_machine(Settings(device="cuda"), 1)


def test_settings_become_toml():
    config = Settings(dataset='npz:/a "b"\\c.npz', tape="/tmp/t", learning_rate=1e-5).to_run_config()
    assert tomllib.loads(to_toml(config)) == config


def test_the_reason_is_the_last_exception_in_the_log():
    log = "INFO\nTraceback:\n  File\n\x1b[91mfl_precode.flower.screening.NoUsableReplies: round 1\x1b[0m\nINFO done\n"
    assert failure_reason(log, "x") == "NoUsableReplies: round 1"
    listed = "a.SettingsError: the run configuration has 2 problem(s):\n  - defence: none\n  - loss: none\nINFO done\n"
    assert failure_reason(listed, "x").endswith("2 problem(s): - defence: none - loss: none")
    assert failure_reason("nothing here\n", "status\n said so") == "status said so"


SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def test_processes_of_a_launch_are_found_and_ended_and_no_others(tmp_path):
    token = uuid.uuid4().hex
    # One that ignores the polite signal, and a grandchild in a session of its own whose parent is gone.
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    parent = f"import subprocess; print(subprocess.Popen({SLEEP!r}, start_new_session=True).pid, flush=True)"
    environment = {**os.environ, TOKEN_VARIABLE: token}
    bystander = subprocess.Popen(SLEEP)
    first = subprocess.Popen([sys.executable, "-c", stubborn], env=environment, stdout=subprocess.PIPE)
    first.stdout.readline()
    with subprocess.Popen([sys.executable, "-c", parent], env=environment, stdout=subprocess.PIPE) as forker:
        grandchild = int(forker.stdout.readline())
    # One without the mark in its environment, as Ray's processes are that rename themselves.
    nameless = subprocess.Popen(SLEEP, cwd=tmp_path)
    found = {process.pid for process in launched_processes(token, tmp_path)}
    assert found == {first.pid, grandchild, nameless.pid}
    assert end_processes(token, tmp_path, grace_seconds=1) == 1
    assert not launched_processes(token, tmp_path)
    assert bystander.poll() is None
    bystander.kill()
    for process in (bystander, first, nameless):
        process.wait()
    first.stdout.close()


def test_flowers_programs_are_those_of_this_python(tmp_path):
    folder = write_programs(tmp_path / "a folder")
    assert {"flwr", "flower-superlink", "flower-superexec", "flwr-simulation"} <= {one.name for one in folder.iterdir()}
    bare = {"PATH": "/nowhere", "HOME": str(tmp_path)}
    said = subprocess.run([folder / "flwr", "--version"], env=bare, capture_output=True, text=True, timeout=120)
    assert said.stdout.split()[-1] == version("flwr"), said.stderr


def test_without_flwr_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(FileNotFoundError, match=r"fl-precode\[simulation\]"):
        write_programs(tmp_path / "programs")
