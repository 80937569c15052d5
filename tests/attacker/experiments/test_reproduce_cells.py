"""Cells: what they hold, what they depend on, and that a killed experiment goes on where it was."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attacker.attacks.base import Attack
from attacker.experiments.cells import AttackedVictims, Cell, Setup, Training
from attacker.experiments.clients import observe_clients
from attacker.experiments.image_sets import images
from attacker.experiments.precode.experiment import attack_cell
from attacker.experiments.precode.run import run_cells
from attacker.experiments.store import Store
from attacker.experiments.work import Scene, make, victims
from attacker.reasons import because
from tests.attacker.reproductions import TINY, tiny

LENET = Setup(data="digits", model="lenet", defence="none")
MATCHING = "inverting-gradients:preset=precode-paper,iterations=4,learning_rate=0.1"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "out"
    experiment = tiny()
    run_cells(experiment, experiment.cells(experiment.setups()), folder)
    return experiment, folder


def stamps(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}


def test_an_interrupted_experiment_makes_only_what_is_left(tmp_path):
    experiment = tiny()
    cells = experiment.cells(experiment.setups())
    folder = tmp_path / "out"

    def interrupt(state):
        if state.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cells(experiment, cells, folder, watch=interrupt)
    before = stamps(folder)
    assert len(before) == 3
    assert run_cells(experiment, cells, folder) == len(cells) - 3
    assert before.items() <= stamps(folder).items()
    assert run_cells(experiment, cells, folder) == 0


@pytest.mark.slow
def test_a_killed_command_leaves_whole_cells_and_goes_on(tmp_path):
    folder = tmp_path / "out"
    code = (
        "from tests.attacker.reproductions import tiny\n"
        "from attacker.experiments.precode.run import run_cells\n"
        "from pathlib import Path\n"
        "if __name__ == '__main__':\n"
        "    e = tiny()\n"
        f"    run_cells(e, e.cells(e.setups()), Path({str(folder)!r}), workers=2)\n"
    )
    script = tmp_path / "begin.py"
    script.write_text(code)
    root = Path(__file__).resolve().parents[3]
    running = subprocess.Popen([sys.executable, script], cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
    cells = folder / "cells"
    deadline = time.monotonic() + 120
    while running.poll() is None and time.monotonic() < deadline and len(list(cells.glob("*.json"))) < 2:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    experiment = tiny()
    wanted = experiment.cells(experiment.setups())
    store = Store(folder)
    kept = sum(store.read(cell, experiment.recipe(cell)) is not None for cell in wanted)
    assert kept >= 2
    assert run_cells(experiment, wanted, folder) <= len(wanted) - 2
    assert all(store.read(cell, experiment.recipe(cell)) is not None for cell in wanted)


def test_everything_is_for_its_owner_only(finished):
    _, folder = finished
    for path in folder.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize("damage", ["number", "cut", "version"])
def test_an_altered_cell_is_named(tmp_path, damage):
    experiment, store = tiny(), Store(tmp_path / "out")
    cell = Cell(kind="attack", setup=LENET, protocol="fedsgd", batch_size=1, attacks=("first-layer",))
    run_cells(experiment, [cell], store.folder)
    path = store.path(cell, experiment.recipe(cell))
    content = json.loads(path.read_text())
    if damage == "number":
        content["result"]["victims"][0]["baseline_ssim"] = 0.9
    else:
        content["version"] = 2
    path.write_text(path.read_text()[:-50] if damage == "cut" else json.dumps(content))
    with pytest.raises(ValueError, match=path.name):
        run_cells(experiment, [cell], store.folder)


def test_altered_weights_are_named(finished):
    experiment, folder = finished
    store = Store(folder)
    training = Cell(kind="training", setup=LENET)
    file = store.result(training, experiment.recipe(training), Training).weights[1]
    path = folder / "tensors" / file.name
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-4] + b"\0\0\0\1")
        with pytest.raises(ValueError, match=file.name):
            store.load(file)
        path.unlink()
        with pytest.raises(ValueError, match="is missing"):
            store.load(file)
    finally:
        path.write_bytes(content)
        path.chmod(0o600)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        Store(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("training", {"seed": 1}),
        ("training", {"scale": replace(TINY, epochs=2)}),
        ("attack", {"seed": 1}),
        ("attack", {"scale": replace(TINY, victims=3)}),
        ("attack", {"data": ("faces",)}),
    ],
)
def test_other_settings_are_other_cells_with_other_results(tmp_path, kind, change):
    store = Store(tmp_path / "out")
    found = []
    for experiment in (tiny(), tiny(**change)):
        setup = replace(LENET, data=experiment.data[0])
        cell = Cell(kind="training", setup=setup) if kind == "training" else attack_cell(setup, MATCHING, 0)
        run_cells(experiment, [cell], store.folder)
        found.append(store.read(cell, experiment.recipe(cell)))
    assert len(stamps(store.folder)) == 2
    one, other = (result.model_dump(exclude={"seconds", "client_seconds", "images", "weights"}) for result in found)
    assert one != other


def test_the_same_settings_give_the_same_results(tmp_path):
    rows = []
    for name in ("one", "other"):
        store, experiment = Store(tmp_path / name), tiny()
        cell = attack_cell(replace(LENET, defence="precode+noise:std=0.01"), MATCHING, 0)
        run_cells(experiment, [cell], store.folder)
        rows.append(store.result(cell, experiment.recipe(cell), AttackedVictims))
    assert rows[0].victims == rows[1].victims
    assert rows[0].images == rows[1].images


@pytest.mark.parametrize("defence", ["none", "prune:share=0.9", "noise:std=0.5", "precode"])
def test_what_is_attacked_is_what_the_client_sends(tmp_path, defence):
    experiment = tiny(defences=(defence,))
    scene = Scene(experiment, attack_cell(replace(LENET, defence=defence), "first-layer", 0), Store(tmp_path / "out"))
    seen, (index,) = scene.observations[0], scene.clients[0]
    assert seen.protocol.defence == defence
    model = scene.victim.model
    picture, label = images("digits", "").train.batch([index])
    loss = torch.nn.functional.cross_entropy(model(scene.victim.inputs.normalise(picture)), label)
    named = dict(model.named_parameters())
    plain = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
    difference = torch.cat([(seen.update[name] - plain[name]).flatten() for name in plain])
    if defence == "none":
        assert float(difference.abs().max()) < 1e-6
    elif defence.startswith("prune"):
        kept = seen.update["conv2.weight"] != 0
        assert float(kept.double().mean()) == pytest.approx(0.1, abs=0.01)
        assert torch.allclose(seen.update["conv2.weight"][kept], plain["conv2.weight"][kept], atol=1e-6)
    elif defence.startswith("noise"):
        assert float(difference.std()) == pytest.approx(0.5, rel=0.05)
    else:
        assert any("encoder" in name for name in seen.update)
        others = observe_clients(
            model, images("digits", ""), experiment.settings(LENET), [[index]], torch.device("cpu")
        )
        assert torch.equal(others[0].parameters["conv1.weight"], seen.parameters["conv1.weight"])


def test_validation_and_judged_images_are_different_and_telling():
    experiment = tiny(scale=replace(TINY, victims=16))
    cell = attack_cell(LENET, "first-layer", 0)
    parts = [victims(experiment, replace(cell, part=part)) for part in ("validation", "judged")]
    validation, judged = ({index for client in part for index in client} for part in parts)
    assert len(validation) == len(judged) == 16
    assert not validation & judged
    grouped = victims(experiment, replace(cell, part="judged", protocol="fedavg", batch_size=4, local_steps=2))
    assert {index for client in grouped for index in client} == judged
    assert [len(client) for client in grouped] == [8, 8]


def test_trained_weights_are_attacked_after_their_epoch(finished):
    experiment, folder = finished
    store = Store(folder)
    fresh, trained = (Scene(experiment, attack_cell(LENET, MATCHING, epoch), store) for epoch in (0, 1))
    moved = (
        fresh.observations[0].parameters["conv1.weight"] - trained.observations[0].parameters["conv1.weight"]
    ).abs()
    assert float(moved.max()) > 1e-3
    assert fresh.clients == trained.clients


def test_an_attack_that_does_not_fit_says_why(tmp_path):
    experiment, store = tiny(), Store(tmp_path / "out")
    run = make(experiment, attack_cell(LENET, "first-layer", 0), store)
    assert isinstance(run, AttackedVictims)
    assert {one.outcome for one in run.victims} == {"not_applicable"}
    kind = because("first-layer-not-linear", name="conv1", kind="Conv2d")
    assert all(one.reason == kind and one.ssim is None for one in run.victims)
    assert run.images is None


def test_a_cell_survives_what_a_chunk_of_an_audit_survives(tmp_path, monkeypatch):
    """Memory for one update only: attacked one by one each gives what it gave among others. A defect is named."""
    experiment, store, cell = tiny(), Store(tmp_path / "out"), attack_cell(LENET, MATCHING, 0)
    whole = make(experiment, cell, store)
    assert isinstance(whole, AttackedVictims)
    attack, refused = Attack.__call__, []

    def cramped(self, victim, seen, **more):
        if len(seen) > 1:
            refused.append(len(seen))
            raise MemoryError("no memory for more than one update")
        return attack(self, victim, seen, **more)

    monkeypatch.setattr(Attack, "__call__", cramped)
    halved = make(experiment, cell, store)
    assert isinstance(halved, AttackedVictims)
    assert refused == [len(whole.victims)]
    assert [one.ssim for one in halved.victims] == pytest.approx([one.ssim for one in whole.victims], abs=2e-3)

    def broken(self, victim, seen, **more):
        raise RuntimeError("boom")

    monkeypatch.setattr(Attack, "__call__", broken)
    failed = make(experiment, cell, store)
    assert isinstance(failed, AttackedVictims)
    assert {(one.outcome, one.reason, one.ssim) for one in failed.victims} == {("failed", "RuntimeError: boom", None)}
