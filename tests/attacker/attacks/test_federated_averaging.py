"""Attacks on weights after local training: exact where they can be, each replay with an effect of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attacker.attacks import PRESETS, FirstLayerInversion, GradientMatching, Outcome, build_attack
from attacker.attacks.gradient_matching.parts import ReplayMode
from attacker.attacks.gradient_matching.replay import UNROLLED_STEPS, chosen_replay
from attacker.gradients.fedavg.unrolled_sgd import local_training_products
from attacker.gradients.memory_budget import evaluation_memory
from attacker.gradients.replay import Replay
from attacker.gradients.trace import trace
from attacker.metrics.similarity import match_batch, mse
from fl_precode import Observation, Protocol
from tests.attacker import tiny
from tests.attacker.audits import audit_tape
from tests.attacker.local_clients import train
from tests.attacker.taped_federation import tape_federation

SPEC = tiny.inputs()
FOUR = Protocol(name="fedavg", local_steps=4, batch_size=2, learning_rate=0.5)
BATCHES = [(0, 1), (2, 3), (0, 1), (2, 3)]


def client(build=tiny.mlp, protocol=FOUR, batches=BATCHES, images=4, dtype=torch.float64):
    torch.manual_seed(0)
    victim = tiny.victim(build(SPEC), SPEC, dtype=dtype)
    x, y = tiny.images(SPEC, images, dtype=dtype), torch.arange(images) % SPEC.classes
    return victim, x, y, train(victim, x, y, batches, protocol)


def attacked(attack, victim, observation: Observation, labels):
    (found,) = attack(victim, [observation], generator=torch.Generator().manual_seed(1), labels=[labels])
    assert found.inputs is not None, found.reason
    return found


@pytest.mark.parametrize("optimiser", [{}, {"momentum": 0.9}, {"momentum": None, "learning_rate": 3.0}], ids=str)
@pytest.mark.parametrize("build", [tiny.mlp, lambda spec: tiny.mlp(spec, bottleneck=True)], ids=["plain", "precode"])
def test_first_layer_inversion_of_one_image_is_exact_after_any_number_of_steps(build, optimiser):
    protocol = replace(FOUR, local_steps=None, local_epochs=7, **optimiser)
    victim, x, _, observation = client(build, protocol, [(0,)] * 7, images=1)
    for size in (1, None):  # without a size, the rank says that it was one image
        found = attacked(FirstLayerInversion(), victim, replace(observation, batch_size=size), None)
        torch.testing.assert_close(found.inputs, x, atol=1e-9, rtol=0)
        assert found.labels.tolist() == [0]
    if build is tiny.mlp:
        whole = attacked(FirstLayerInversion(), victim, observation, None)
        assert whole.matching_loss == pytest.approx(0, abs=1e-12), "the replay of all steps confirms the image"


def test_first_layer_inversion_takes_weight_decay_of_one_step_back():
    protocol = replace(FOUR, local_steps=1, weight_decay=0.2)
    victim, x, _, observation = client(protocol=protocol, batches=[(0,)], images=1)
    found = attacked(FirstLayerInversion(), victim, observation, None)
    torch.testing.assert_close(found.inputs, x, atol=1e-9, rtol=0)
    silent = replace(observation, protocol=replace(protocol, weight_decay=None))
    assert float(mse(attacked(FirstLayerInversion(), victim, silent, None).inputs, x)) > 1e-3


def test_unrolled_matching_returns_the_images_and_the_other_replays_come_less_close():
    victim, x, y, observation = client()
    errors, losses = {}, {}
    for way in ("unrolled", "surrogate", "one-gradient"):
        attack = GradientMatching().with_options(iterations=400, total_variation=0.0, local_training=way)
        found = attacked(attack, victim, observation, y)
        images, truth = SPEC.denormalise(found.inputs), SPEC.denormalise(x)
        errors[way], losses[way] = float(mse(images[match_batch(images, truth)], truth).mean()), found.matching_loss
    assert losses["unrolled"] < losses["surrogate"] < losses["one-gradient"]
    assert errors["unrolled"] < 0.5 * min(errors["surrogate"], errors["one-gradient"])


@pytest.mark.parametrize("way", ["auto", "unrolled", "surrogate", "one-gradient"])
@pytest.mark.parametrize(
    "settings",
    [
        GradientMatching().with_options(iterations=5, total_variation=0.0),
        PRESETS["idlg"].with_options(iterations=5, history=3),
    ],
    ids=["adam", "l-bfgs"],
)
def test_every_replay_works_with_both_optimisers(way, settings):
    victim, _, y, observation = client(tiny.convnet, dtype=torch.float32)
    found = attacked(settings.with_options(local_training=way), victim, observation, y)
    assert found.inputs.dtype == torch.float32
    assert found.outcome is Outcome.ITERATION_LIMIT


@pytest.mark.parametrize(
    ("announced", "images", "expected"),
    [
        ({}, 4, "unrolled"),
        ({"local_steps": 1}, 4, "one-gradient"),
        ({"local_steps": None}, 4, "one-gradient"),  # nothing announced: as one step
        ({"local_steps": None, "local_epochs": 1, "batch_size": 4}, 4, "one-gradient"),
        ({"local_steps": None, "local_epochs": 2}, 4, "unrolled"),
        ({"local_steps": UNROLLED_STEPS + 1}, 4, "surrogate"),
        ({"learning_rate": None}, 4, "surrogate"),
        ({"batch_size": None}, 4, "surrogate"),
        ({"batch_size": None}, 1, "unrolled"),
        ({"local_steps": None, "local_epochs": 2, "batch_size": None}, 4, "surrogate"),
    ],
)
def test_auto_takes_what_the_protocol_allows(announced, images, expected):
    _, _, _, observation = client()
    one = replace(observation, protocol=replace(FOUR, **announced), batch_size=images)
    assert chosen_replay(ReplayMode.AUTO, one) == expected
    assert chosen_replay(ReplayMode.SURROGATE, one) == "surrogate"


def test_unrolled_steps_count_against_the_candidates_at_once():
    victim, x, _, one = client()
    needed = {}
    for steps in (2, 8):
        many = replace(one, protocol=replace(FOUR, local_steps=steps))
        products = local_training_products(Replay(victim, one.parameters, one.buffers), [many], trace(victim))
        needed[steps] = evaluation_memory(products, x, ()).per_candidate
    assert needed[8] > 2 * needed[2]


def test_the_setting_is_an_option_of_the_spec():
    assert build_attack("inverting-gradients:local_training=surrogate").replay == "surrogate"
    with pytest.raises(
        ValueError, match="local_training to be one of auto, one-gradient, unrolled, surrogate, got 'x'"
    ):
        build_attack("inverting-gradients:local_training=x")


@pytest.mark.parametrize("way", ["unrolled", "surrogate", "one-gradient"])
def test_an_audit_attacks_a_tape_of_local_training(tmp_path, way):
    local = {"local_steps": 3, "momentum": 0.5, "weight_decay": 0.01}
    taped = tape_federation(tmp_path, clients=2, rounds=1, batch_size=2, local=local)
    spec = f"inverting-gradients:iterations=50,total_variation=0,local_training={way}"
    record = audit_tape(taped.tape, out=tmp_path / "audit", attacks=[spec], victims=1, labels="granted")
    (federation,) = record.federations
    assert (federation.batch_size, federation.local_steps) == (6, 3)
    assert len(record.results) == 6, "three steps of two images each"
    assert {row.outcome for row in record.results} <= {"converged", "iteration_limit"}
    assert all(row.ssim is not None for row in record.results)
    if way == "unrolled":
        # Digits of a class are alike, so that hardly any counts beyond the best guess; they are what was looked for.
        assert record.summaries[0].median_ssim > 0.8
