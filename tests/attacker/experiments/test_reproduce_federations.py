"""Federations of experiments: Flower's and the same clients' work in one process; local Adam is announced."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attacker.attacks import build_attack
from attacker.attacks.gradient_matching.parts import ReplayMode
from attacker.attacks.gradient_matching.replay import chosen_replay
from attacker.experiments.cells import Cell, FederationRun, Setup
from attacker.experiments.federations import federation_settings, run_in_process
from attacker.experiments.precode.experiment import attack_cell
from attacker.experiments.precode.run import run_cells
from attacker.experiments.store import Store
from attacker.experiments.work import Scene
from fl_precode.federation.config import Settings, SettingsError
from tests.attacker.reproductions import TINY, tiny

MLP = Setup(data="digits", model="mlp", defence="none")


@pytest.mark.federation
@pytest.mark.parametrize(
    ("model", "protocol"),
    [
        pytest.param("mlp", "fedavg", marks=pytest.mark.slow),
        # Its batch normalisation is evaluated by running statistics, which clients send beside their gradients.
        pytest.param("resnet20", "fedsgd", marks=pytest.mark.slow),
    ],
)
def test_the_process_and_flower_train_the_same_model(tmp_path, model, protocol):
    experiment = tiny(models=(model,), scale=replace(TINY, rounds=2, clients=2))
    setup = replace(MLP, model=model)
    cell = Cell(kind="federation", setup=setup, protocol=protocol, batch_size=32, runtime="flower")
    run_cells(experiment, [cell], tmp_path / "out")
    flower = Store(tmp_path / "out").result(cell, experiment.recipe(cell), FederationRun)
    assert flower.completed
    assert flower.runtime == "flower"
    assert [point.number for point in flower.curve] == [0, 1, 2]
    here = run_in_process(federation_settings(experiment, cell))
    for point in here.curve:
        other = flower.curve[point.number]
        assert point.accuracy == pytest.approx(other.accuracy, abs=0.006)
        assert point.loss == pytest.approx(other.loss, rel=1e-3)
    if model == "mlp":
        assert flower.curve[-1].accuracy > 0.8


@pytest.mark.parametrize("protocol", ["fedsgd", "fedavg"])
def test_a_federation_in_the_process_learns(protocol):
    steps = 4 if protocol == "fedavg" else 0
    # Rounds of several steps are fewer, so that a client trains on as many images.
    experiment = tiny(models=("mlp",), scale=replace(TINY, search_rounds=40 * max(1, steps), clients=4))
    cell = Cell(kind="federation", setup=MLP, protocol=protocol, batch_size=8, local_steps=steps, runtime="process")
    run = run_in_process(federation_settings(experiment, cell))
    assert run.completed
    assert [point.number for point in run.curve] == [0, 40]
    assert run.curve[1].accuracy > run.curve[0].accuracy + 0.2


def test_a_federation_that_diverges_says_so():
    run = run_in_process(
        Settings(dataset="digits", model="mlp", learning_rate=1e30, num_server_rounds=9, num_clients=2, device="cpu")
    )
    assert not run.completed
    assert "not finite" in run.reason


def test_attacks_do_not_replay_local_adam_as_if_it_were_sgd(tmp_path):
    experiment = tiny(models=("mlp",))
    cell = replace(attack_cell(MLP, "first-layer", 0), protocol="fedavg", local_steps=1)
    scene = Scene(experiment, cell, Store(tmp_path / "out"))
    seen = scene.observations[0]
    adam = replace(seen, protocol=replace(seen.protocol, optimiser="adam"))
    assert chosen_replay(ReplayMode.AUTO, seen) == "one-gradient"
    assert chosen_replay(ReplayMode.AUTO, adam) == "surrogate"
    for spec in ("first-layer", "inverting-gradients:iterations=2,local_training=unrolled"):
        attack = build_attack(spec)
        assert attack.refuses(scene.victim, seen) is None, spec
        (refused,) = attack(scene.victim, [adam], generator=torch.Generator(), labels=scene.labels[:1])
        assert refused.inputs is None
        assert refused.reason_codes == ("local-adam",)


def test_local_adam_is_announced_and_only_for_fedavg():
    settings = Settings(protocol="fedavg", local_epochs=1, local_optimiser="adam")
    assert settings.announced.optimiser == "adam"
    assert Settings(protocol="fedavg", local_epochs=1).announced.optimiser == "sgd"
    assert Settings().announced.optimiser is None
    for wrong in ({}, {"protocol": "fedavg", "local_epochs": 1, "momentum": 0.9}):
        with pytest.raises(SettingsError, match="local-optimiser"):
            Settings(local_optimiser="adam", **wrong)
    with pytest.raises(SettingsError, match="sgd, adam"):
        Settings(protocol="fedavg", local_epochs=1, local_optimiser="lion")
