"""Real federations: our launcher, Flower's SuperLink, Ray's workers."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from deploy.simulation.launch import SimulationRuntime
from fl_precode.federation.config import Settings
from fl_precode.tape import Tape

pytestmark = pytest.mark.federation

ROOT = Path(__file__).resolve().parents[2]
COMMAND = str(Path(sys.executable).parent / "fl-precode")


def flower_processes(folder):
    """Command lines of what runs of Flower's or Ray's for launches whose folders lie in this one, by pid.

    Other tests, and other people on this machine, may run federations at the same time.
    """
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if any(word in line for word in ("flower-", "flwr", "raylet", "gcs_server", "ray::")):
            with suppress(psutil.Error):
                # Ray's processes overwrite what others can read of their environment, not their working folder.
                if process.environ().get("TMPDIR") == str(folder) or Path(process.cwd()).is_relative_to(folder):
                    found[process.pid] = line
    return found


@pytest.fixture
def launches(monkeypatch, tmp_path_factory):
    """Where the launches of this test have their folders. A short path: Ray puts Unix sockets below it."""
    tmp_path_factory.getbasetemp()  # chosen when first asked for: not below a folder that is removed
    folder = Path(tempfile.mkdtemp(prefix="t"))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def nothing_left_running(launches):
    yield
    left = flower_processes(launches)
    assert not left, left
    assert not list(launches.glob("flp-*")), "the folders of launches are removed"


@pytest.fixture
def poisoned_folder(tmp_path):
    """A folder that holds other packages of our names, and a FLWR_HOME that must not be touched."""
    for package in ("clients", "server", "fl_precode"):
        (tmp_path / "poison" / package).mkdir(parents=True)
        (tmp_path / "poison" / package / "__init__.py").write_text("raise RuntimeError('poisoned')\n")
    return tmp_path / "poison"


def test_a_federation_of_somebody_else_is_not_counted(launches, tmp_path):
    named_like_flowers = [sys.executable, "-c", "import time; time.sleep(60)  # flower-superlink raylet"]
    elsewhere = {**os.environ, "TMPDIR": str(tmp_path)}
    running = [
        subprocess.Popen(named_like_flowers),
        # As one of Ray's processes that overwrote its environment.
        subprocess.Popen(named_like_flowers, env=elsewhere, cwd=launches),
        subprocess.Popen(named_like_flowers, env=elsewhere, cwd=tmp_path),
    ]
    try:
        assert set(flower_processes(launches)) == {process.pid for process in running[:2]}
    finally:
        for process in running:
            process.kill()
            process.wait()


@pytest.mark.usefixtures("nothing_left_running")
@pytest.mark.slow
def test_two_runs_from_a_folder_with_other_packages_of_our_names(tmp_path, poisoned_folder, monkeypatch):
    home = tmp_path / "users-flwr-home"
    monkeypatch.setenv("FLWR_HOME", str(home))
    monkeypatch.chdir(poisoned_folder)
    common = {"num_clients": 4, "num_server_rounds": 3, "dataset": "faces", "defence": "precode", "device": "cpu"}
    # Noise of the system differs in every run.
    common["seeded_noise"] = True
    hashes = []
    lines: list[str] = []
    with SimulationRuntime() as runtime:
        for name, tape in (("on", str(tmp_path / "on" / "tape")), ("off", "")):
            settings = Settings(**common, output_dir=str(tmp_path / name), tape=tape)
            outcome = runtime.run(settings, on_line=lines.append)
            assert outcome.completed, outcome.log
            result = json.loads((tmp_path / name / "result.json").read_text())
            assert result["finished"]
            hashes.append([one["model_sha256"] for one in result["rounds"]])
    assert hashes[0] == hashes[1], "the interceptor must not change a bit"
    assert any("[ROUND 3/3]" in line for line in lines)
    tape = Tape(tmp_path / "on" / "tape")
    assert len(tape.observations()) == 12
    assert tape.problems == []
    assert not home.exists(), "the user's own Flower configuration is left alone"


@pytest.mark.usefixtures("nothing_left_running")
def test_a_run_whose_clients_all_fail_has_failed_and_says_why_from_one_process():
    settings = Settings(model="tests.failing_model:build", num_clients=8, num_server_rounds=1, dataset="digits")
    with SimulationRuntime(environment={"PYTHONPATH": str(ROOT)}) as runtime:
        outcome = runtime.run(settings, ray_cpus=1)
    assert not outcome.completed
    assert outcome.status == "finished:failed"
    assert "no usable reply" in outcome.reason
    assert "the clinic is closed" in outcome.reason
    assert len(set(re.findall(r"the clinic is closed, says process (\d+)", outcome.log))) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_left_running")
@pytest.mark.parametrize("when", ["[ROUND 1/", "Starting", None])
def test_ctrl_c_leaves_nothing_running(tmp_path, when):
    command = [COMMAND, "run", "--out", str(tmp_path / "out")]
    command += ["--set", "num-server-rounds=200", "--set", "dataset=digits"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    time.sleep({"[ROUND 1/": 25, "Starting": 8, None: 1.5}[when])
    os.kill(process.pid, signal.SIGINT)
    output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 130, output
    assert "Traceback" not in output


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_left_running")
def test_two_runs_side_by_side(tmp_path):
    processes = [
        subprocess.Popen(
            [COMMAND, "run", "--out", str(tmp_path / str(i)), "--set", "dataset=digits"],
            cwd=ROOT,
        )
        for i in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    for i in range(2):
        assert len(Tape(tmp_path / str(i) / "tape").observations()) == 12


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_left_running")
def test_fifty_virtual_clients_two_at_a_time(tmp_path):
    settings = Settings(num_clients=50, num_server_rounds=2, dataset="digits", output_dir=str(tmp_path / "out"))
    with SimulationRuntime() as runtime:
        outcome = runtime.run(settings, client_resources_num_cpus=1)
    assert outcome.completed, outcome.reason
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [one["usable"] for one in result["rounds"][1:]] == [50, 50]
    assert result["peak_rss_bytes"] < 2 * 2**30


@pytest.mark.usefixtures("nothing_left_running")
def test_a_failure_inside_stops_everything(launches):
    with pytest.raises(KeyError), SimulationRuntime():
        raise KeyError(next(line for line in flower_processes(launches).values() if "flower-superlink" in line))
