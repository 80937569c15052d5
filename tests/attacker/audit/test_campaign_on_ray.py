"""The same campaign on one worker, on two, and on a Ray cluster of two nodes on loopback: the same record."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from attacker.audit.audit import audit
from attacker.audit.inputs.tape_source import TapeSource
from attacker.experiments.precode.run import run_cells
from attacker.experiments.store import Store
from attacker.jobs.run import hire_for, run_jobs
from attacker.jobs.store import FolderStore
from tests.attacker.campaigns import ROOT, finished, log_of, pictures, settings, start, without_times
from tests.attacker.reproductions import tiny
from tests.attacker.taped_federation import tape_federation
from tests.attacker.toy_work import DEVICES, device_job

pytestmark = [pytest.mark.slow, pytest.mark.federation, pytest.mark.timeout(3000)]


class Cluster:
    """Two nodes of one processor each, with folders and ports of their own; it poses as two GPUs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = f"127.0.0.1:{free_port()}"
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.add("--head", f"--port={self.address.partition(':')[2]}", "--include-dashboard=false",
                 f"--temp-dir={folder}")  # fmt: skip
        self.add(f"--address={self.address}")

    def add(self, *arguments: str) -> None:
        ray = str(Path(sys.executable).parent / "ray")
        with (self.folder.parent / f"{self.folder.name}-{len(self.nodes)}.log").open("wb") as log:
            self.nodes.append(
                subprocess.Popen(
                    [ray, "start", *arguments, "--node-ip-address=127.0.0.1", "--num-cpus=1", "--num-gpus=2",
                     "--block", "--object-store-memory=80000000", "--disable-usage-stats"],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                )
            )  # fmt: skip

    def end(self, node: int) -> None:
        if self.nodes[node].poll() is not None:
            return
        family = [*psutil.Process(self.nodes[node].pid).children(recursive=True), self.nodes[node]]
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.nodes[node].wait()

    def wait_for(self, nodes: int) -> None:
        code = (
            "import ray, sys, time; ray.init(address=sys.argv[1], log_to_driver=False, configure_logging=False)\n"
            "while ray.cluster_resources().get('CPU', 0) < int(sys.argv[2]): time.sleep(0.5)"
        )
        subprocess.run([sys.executable, "-c", code, self.address, str(nodes)], check=True, timeout=180)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def cluster():
    with tempfile.TemporaryDirectory(
        prefix="ray-", ignore_cleanup_errors=True
    ) as short:  # paths of sockets are limited
        own = Cluster(Path(short) / "ray")
        try:
            for _ in range(240):  # its head answers before the other node can join
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", int(own.address.partition(":")[2]))) == 0:
                        break
                time.sleep(0.5)
            own.wait_for(2)
            yield own
        finally:
            for number in range(len(own.nodes)):
                own.end(number)


@pytest.fixture(scope="module")
def tape(tmp_path_factory):
    return tape_federation(tmp_path_factory.mktemp("run"), defence="precode", rounds=8, clients=4).tape


@pytest.fixture(scope="module")
def undisturbed(tape, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "audit"
    audit([TapeSource(tape=tape)], settings(victims=32), out=out)
    return out


def same(out: Path, undisturbed: Path) -> None:
    assert without_times(out) == without_times(undisturbed)
    assert pictures(out) == pictures(undisturbed)


def test_two_workers_give_the_record_of_one(tape, undisturbed, tmp_path):
    out = tmp_path / "two"
    assert start(tape, out, workers=2, victims=32).wait() == 0, log_of(out).read_text()
    same(out, undisturbed)


def test_a_cluster_of_two_nodes_gives_the_record_of_one_worker(tape, undisturbed, tmp_path, cluster):
    out = tmp_path / "ray"
    assert start(tape, out, victims=32, ray_address=cluster.address).wait() == 0, log_of(out).read_text()
    same(out, undisturbed)


def test_an_experiment_on_a_cluster_gives_the_results_of_this_process(tmp_path, cluster):
    """In a process of its own: Ray ends its driver where it loses its cluster."""
    experiment = tiny()
    cells = experiment.cells(experiment.setups())[:6]
    assert run_cells(experiment, cells, tmp_path / "here") == len(cells)
    code = (
        "import sys; from pathlib import Path; from attacker.experiments.precode.run import run_cells\n"
        "from tests.attacker.reproductions import tiny\n"
        "e = tiny(); cells = e.cells(e.setups())[:6]\n"
        "print('made', run_cells(e, cells, Path(sys.argv[1]), ray_address=sys.argv[2]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "ray"), cluster.address], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, timeout=900, check=False,
    )  # fmt: skip
    assert f"made {len(cells)}" in done.stdout, done.stderr
    here, there = Store(tmp_path / "here"), Store(tmp_path / "ray")
    for cell in cells:
        found = [store.read(cell, experiment.recipe(cell)) for store in (here, there)]
        one, other = (made.model_dump(exclude={"seconds", "client_seconds"}) for made in found)
        assert one == other


def test_a_lost_node_costs_nothing_and_a_lost_cluster_is_said(tape, undisturbed, tmp_path, cluster):
    out = tmp_path / "lost"
    process = start(tape, out, victims=32, ray_address=cluster.address)
    while len(finished(out)) < 2 and process.poll() is None:
        time.sleep(0.2)
    cluster.end(1)
    known = len(finished(out))
    while len(finished(out)) < known + 2 and process.poll() is None:
        time.sleep(0.2)
    cluster.end(0)
    assert process.wait(timeout=120) == 1
    deadline = time.monotonic() + 60
    while "What was finished is kept" not in log_of(out).read_text():  # by us or, where Ray ended us, after us
        assert time.monotonic() < deadline, log_of(out).read_text()
        time.sleep(0.2)
    kept = finished(out)
    assert start(tape, out, victims=32).wait() == 0, log_of(out).read_text()
    assert {name: finished(out)[name] for name in kept} == kept
    same(out, undisturbed)


@pytest.mark.filterwarnings("ignore:Tip. In future versions of Ray:FutureWarning")
def test_jobs_on_gpus_run_in_processes_of_their_own_and_never_share_one(tmp_path, cluster):
    store = FolderStore(tmp_path, DEVICES)
    jobs = [device_job(number) for number in range(8)]
    run_jobs(jobs, store, hire_for(store, ray_address=cluster.address, gpu=True))
    ran = [store.load(one.id).tolist() for one in jobs]
    assert {int(device) for device, *_ in ran} == {0, 1}
    assert len({process for _, process, *_ in ran}) >= 4, "two nodes of two GPUs each"
    for device, process, began, ended in ran:
        beside = [other for other in ran if other[1] != process and other[2] < ended and began < other[3]]
        assert sum(other[0] == device for other in beside) <= 1, "the other node has a GPU of this number"
    assert any(other[2] < one[3] and one[2] < other[3] for one in ran for other in ran if one[1] != other[1])
