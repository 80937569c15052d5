"""Jobs: done once whoever works, kept whole or not at all, and given up as their terms say."""

from __future__ import annotations

import hashlib
import json
import stat
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save

from attacker.attacks.base import Outcome
from attacker.audit.execution.work import ATTACK
from attacker.jobs.job import Event, Job, work_of
from attacker.jobs.progress import Judgement, Progress
from attacker.jobs.run import TRIES, Terms, hire_for, run_jobs
from attacker.jobs.store import Altered, FolderStore, MemoryStore, checksum
from attacker.jobs.workers import OwnProcess
from tests.attacker.toy_work import WORK, job


class Lenient(Terms):
    """Zero stands for what could not be had."""

    def __init__(self):
        self.deaths = []

    def judged(self, job, result):
        return Judgement(failed=float(result) == 0.0, score=float(result))

    def ended(self, job, store):
        store.keep(job.id, torch.zeros(1))

    def died(self, job, times, how, store):
        self.deaths.append((job.id, times))
        store.keep(job.id, torch.zeros(1))
        return job


def test_workers_do_each_job_once_and_survive_those_that_kill_them(tmp_path):
    store, terms, states = FolderStore(tmp_path / "jobs", WORK), Lenient(), []
    jobs = [job(4), job(3, dies=True), job(9)]
    run_jobs(jobs, store, hire_for(store, workers=2), terms=terms, watch=states.append)
    assert [float(store.load(one.id)) for one in jobs] == [2.0, 0.0, 3.0]
    assert terms.deaths == [("root-3", TRIES)]
    last = states[-1]
    assert (last.done, last.of, last.failing, last.best, last.share) == (3, 3, 1, 3.0, 1.0)
    for path in store.folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = {path: path.stat().st_mtime_ns for path in store.folder.iterdir()}

    def nobody(_hear):
        raise AssertionError("everything is done")

    run_jobs(jobs, store, nobody, terms=terms)
    assert before == {path: path.stat().st_mtime_ns for path in store.folder.iterdir()}


def test_work_that_must_be_whole_says_what_ended_it_and_keeps_the_rest(tmp_path):
    store = FolderStore(tmp_path, WORK)
    with pytest.raises(RuntimeError, match=r"root of -1 could not go on: ArithmeticError: -1 has no root\. .*is kept"):
        run_jobs([job(4), job(-1), job(9)], store, hire_for(store))
    assert (store.has("root-4"), store.has("root--1"), store.has("root-9")) == (True, False, False)
    with pytest.raises(RuntimeError, match="root of 2 did not end in its time"):
        run_jobs([job(2, patience=0.2, hangs=True)], store, hire_for(store))


def test_what_does_not_return_is_ended_and_its_result_does_not_come_later():
    store: MemoryStore[torch.Tensor] = MemoryStore()
    run_jobs([job(2, patience=0.2, hangs=True), job(4)], store, lambda hear: OwnProcess(store, hear), terms=Lenient())
    assert (float(store.load("root-2")), float(store.load("root-4"))) == (0.0, 2.0)


def test_where_no_time_is_left_nothing_more_is_begun():
    class Short(Terms):
        def timed(self, job, rest, workers):
            return job if len(rest) > 1 else None

    store: MemoryStore[torch.Tensor] = MemoryStore()
    jobs = [job(number) for number in (1, 4, 9)]
    run_jobs(jobs, store, lambda hear: OwnProcess(store, hear), terms=Short())
    assert [store.has(one.id) for one in jobs] == [True, False, False]


@pytest.mark.parametrize("damage", ["number", "cut", "version", "tensors", "no tensors"])
def test_an_altered_result_is_named_before_anything_is_done(tmp_path, damage):
    store = FolderStore(tmp_path, WORK)
    store.keep("root-4", torch.tensor([2.0]))
    path, tensors = store.path("root-4"), tmp_path / "root-4.safetensors"
    content = json.loads(path.read_text())
    if damage == "number":
        path.write_text(json.dumps(content | {"whole": False}))
    elif damage == "cut":
        path.write_text(path.read_text()[:-20])
    elif damage == "version":
        other = {key: value for key, value in content.items() if key != "sha256"} | {"version": 2}
        path.write_text(json.dumps(other | {"sha256": checksum(other)}))
    elif damage == "tensors":
        tensors.write_bytes(save({"root": torch.tensor([3.0])}))
    else:
        tensors.unlink()
    name = "root-4" + (".safetensors" if "tensors" in damage else ".json")
    with pytest.raises(Altered, match=rf"{name} was altered or damaged: .*; remove it"):
        run_jobs([job(9), job(4)], store, hire_for(store))
    assert not store.has("root-9")


def test_chunks_that_an_earlier_version_finished_are_read(tmp_path):
    """It wrote tensors also where there are none, and the rest in one line."""
    row = {"outcome": "FAILED", "reason": "no memory", "noise": 0}
    for name, tensors, more in [("f1-a01-0001", {}, {}), ("f1-a01-0002", {"0.inputs": torch.ones(1, 1, 2, 2)},
                                                          {"outcome": "CONVERGED", "reason": ""})]:  # fmt: skip
        content = save(tensors)
        (tmp_path / f"{name}.safetensors").write_bytes(content)
        about = {"format": "fl-precode-chunk", "version": 1, "tensors": hashlib.sha256(content).hexdigest(),
                 "results": [row | more]}  # fmt: skip
        (tmp_path / f"{name}.json").write_text(json.dumps(about | {"sha256": checksum(about)}))
    store = FolderStore(tmp_path, ATTACK)
    (failed,), (converged,) = store.load("f1-a01-0001"), store.load("f1-a01-0002")
    assert (failed.outcome, failed.reason, failed.inputs) == (Outcome.FAILED, "no memory", None)
    assert (converged.outcome, converged.inputs.tolist()) == (Outcome.CONVERGED, [[[[1.0, 1.0], [1.0, 1.0]]]])


def test_a_job_travels_as_text():
    one = replace(job(2, list=[1, "a", None]), seconds=3.5)
    assert Job.from_json(one.to_json()) == one
    assert work_of(one.work) is WORK
    with pytest.raises(ValueError, match="as package.module:NAME, got 'tests.attacker.toy_work'"):
        work_of("tests.attacker.toy_work")


def test_progress_goes_by_cost_and_guesses_from_this_session_only(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("attacker.jobs.progress.time.monotonic", lambda: clock[0])
    states = []
    old, first, second = job(1, cost=10.0), job(2, cost=2.0), job(3, cost=6.0)
    progress = Progress([old, first, second], states.append)
    progress.finish_old([old])
    assert (states[-1].done, states[-1].share, states[-1].seconds_left) == (1, pytest.approx(10 / 18), None)
    clock[0] += 4.0
    progress.finish(first)
    assert (states[-1].done, states[-1].of, states[-1].seconds_left) == (2, 3, pytest.approx(12.0))
    progress.hear(Event("progress", second.id, share=0.5))
    assert states[-1].title == "root of 3"
    assert states[-1].seconds_left == pytest.approx(4.0 / 5.0 * 3.0)
    progress.finish(second)
    assert (states[-1].share, states[-1].seconds_left) == (1.0, 0.0)
