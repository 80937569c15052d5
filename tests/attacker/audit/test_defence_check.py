"""Defences that were announced and not applied, or applied and not announced, show in the update itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attacker.audit.inputs.defence_check import Sighting, common_sightings, doubts, sightings
from attacker.reasons import Reason, because
from attacker.report.verdict import verdicts
from attacker.victim import Victim
from fl_precode import Observation, Protocol
from fl_precode.data.registry import load_data
from fl_precode.defences.registry import apply_defence, gradient_defence, perturbation_generator
from fl_precode.models import build_model
from tests.attacker.audits import audit_tape
from tests.attacker.local_clients import train
from tests.attacker.taped_federation import tape_federation

SPECS = (
    "none",
    "precode",
    "noise:std=0.001",
    "laplace:std=0.001",
    "prune:share=0.5",
    "prune:share=0.9",
    "clip:max_norm=0.01",
    "quantise:bits=4",
    "sign",
    "soteria:share=0.6",
    "dp:max_norm=1,noise_multiplier=0.5",
    "precode+ppp:std=0.01",
    "prune:share=0.5+clip:max_norm=0.01",
    "clip:max_norm=0.1+noise:std=0.001",
    "noise:std=0.001+clip:max_norm=0.01",
    "local-dp:clip=1,sensitivity=1e-4,epsilon=10,delta=1e-5",
    "central-dp:clip=0.01",
    "central-dp:clip=0.01,side=server",
    "percentile",
    "percentile:share=20,gamma=1e-5",
    "svt",
)
MODELS = ("lenet", "lenet:activation=relu")
PHOTOS = load_data("photos")


def update(model: str, defence: str, *, batch: int = 2, announced: str | None = None) -> tuple[Victim, Observation]:
    """One gradient of real images by a client that applies ``defence`` and announces ``announced``."""
    images, labels = PHOTOS.train.batch(range(batch))
    inputs = PHOTOS.inputs
    made = apply_defence(defence, build_model(model, inputs, seed=0), inputs)
    victim = Victim(model=made, inputs=inputs)
    made = victim.model  # a copy
    images = inputs.normalise(images)
    torch.manual_seed(1)
    loss = victim.training_loss(images, labels)
    names = [name for name, _ in made.named_parameters()]
    gradient = dict(zip(names, torch.autograd.grad(loss, list(made.parameters())), strict=True))
    chain = gradient_defence(defence)
    if chain is not None:
        generator = perturbation_generator(5)
        gradient = chain(gradient, generator=generator, model=made, batch=(images, labels))
    return victim, Observation(
        parameters={name: value.detach() for name, value in made.named_parameters()},
        buffers={},
        update=gradient,
        kind="gradient",
        batch_size=batch,
        protocol=Protocol(name="fedsgd", defence=announced or defence),
        round=1,
        node="7",
    )


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("defence", SPECS)
def test_an_honest_client_raises_no_doubt(model: str, defence: str) -> None:
    victim, seen = update(model, defence)
    assert doubts(victim, seen, defence) == ()


@pytest.mark.parametrize(
    ("announced", "code", "figure"),
    [
        ("prune:share=0.9", "pruning-not-applied", "90%"),
        ("clip:max_norm=0.01", "clipping-not-applied", "0.01"),
        ("quantise:bits=4", "rounding-not-applied", "4 bits"),
        ("sign", "signs-not-applied", ""),
        ("soteria:share=0.6", "soteria-not-applied", "60%"),
        ("noise:std=0.001", "noise-not-applied", "std 0.001"),
        ("laplace:std=0.001", "noise-not-applied", "std 0.001"),
        ("dp:max_norm=1,noise_multiplier=0.5", "noise-not-applied", "std 0.25"),
        ("local-dp:clip=1e-4,sensitivity=1e-8,epsilon=10,delta=1e-5", "local-dp-not-applied", "norm 0.0001"),
        ("local-dp:clip=100,sensitivity=1e-2,epsilon=1,delta=1e-5", "noise-not-applied", "std 0.0484"),
        ("central-dp:clip=0.01", "clipping-not-applied", "0.01"),
        ("percentile:share=20,gamma=100", "percentile-not-applied", "80 %"),
        ("percentile:gamma=1e-5", "percentile-not-applied", "1e-05"),
        ("svt:fraction=0.9,gamma=1e-9", "svt-not-applied", "draws"),
    ],
)
@pytest.mark.parametrize("model", MODELS)
def test_announced_and_not_applied(model: str, announced: str, code: str, figure: str) -> None:
    victim, seen = update(model, "none", announced=announced)
    (sentence,) = doubts(victim, seen, announced)
    assert sentence.code == code
    assert figure in sentence


def test_a_model_of_linear_layers_raises_no_doubt() -> None:
    for defence in ("none", "precode", "noise:std=0.001"):
        victim, seen = update("mlp", defence)
        assert doubts(victim, seen, defence) == ()


def test_partial_noise_that_was_left_out() -> None:
    victim, seen = update("lenet", "precode")
    (sentence,) = doubts(victim, seen, "precode+ppp:std=0.01")
    assert sentence == because("noise-not-applied.some-layers", std=0.01)


@pytest.mark.parametrize(
    ("applied", "code", "figure"),
    [
        ("prune:share=0.5", "was-pruned", ""),
        ("prune:share=0.9", "was-pruned", ""),
        ("quantise:bits=4", "was-rounded", ""),
        ("sign", "was-rounded", ""),
        ("noise:std=0.001", "unexplained-rest", "root mean square of 0.001"),
        ("dp:max_norm=1,noise_multiplier=0.5", "unexplained-rest", ""),
    ],
)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("announced", ["none", "unknown"])
def test_applied_and_not_announced(model: str, applied: str, code: str, figure: str, announced: str) -> None:
    victim, seen = update(model, applied)
    (found,) = sightings(victim, seen, announced)
    assert found.sentence.code == code
    assert figure in found.sentence
    assert found.contradicts == (announced == "none")  # nothing contradicts a client that announced nothing


def test_more_images_than_a_layer_has_rows_say_nothing_about_noise() -> None:
    victim, seen = update("lenet", "noise:std=0.001", batch=12)
    assert doubts(victim, seen, "none") == ()  # ten classes: the classifier's gradient has no room left


@pytest.mark.parametrize("announced", ["none", "noise:std=0.001"])
def test_locally_trained_weights(announced: str) -> None:
    victim, _ = update("mlp", "none")
    images, labels = PHOTOS.train.batch(range(4))
    protocol = Protocol(name="fedavg", local_epochs=1, batch_size=2, learning_rate=0.1, defence=announced)
    seen = train(victim, PHOTOS.inputs.normalise(images), labels, [[0, 1], [2, 3]], protocol)
    assert bool(doubts(victim, seen, announced)) == (announced != "none")


def test_weight_decay_fills_every_rank_and_is_not_taken_for_noise() -> None:
    victim, seen = update("mlp", "none")
    decayed = {name: value + 0.01 * seen.parameters[name] for name, value in seen.update.items()}
    (found,) = sightings(victim, replace(seen, update=decayed), "none")
    assert not found.contradicts
    assert "as a weight-decay of 0.01 leaves it" in found.sentence
    announced = replace(seen.protocol, weight_decay=0.01)
    assert sightings(victim, replace(seen, update=decayed, protocol=announced), "none") == ()


def test_updates_that_cannot_be_attacked_raise_no_doubt_and_no_error() -> None:
    victim, seen = update("lenet", "none")
    broken = {name: value * float("nan") for name, value in seen.update.items()}
    assert doubts(victim, replace(seen, update=broken), "noise:std=0.001") == ()


def test_local_adam_is_not_taken_for_a_defence() -> None:
    victim, seen = update("mlp", "none")
    signs = {name: 1e-3 * value / (value.abs() + 1e-8) for name, value in seen.update.items()}  # its first step
    protocol = replace(seen.protocol, local_steps=1, batch_size=2, learning_rate=1e-3, optimiser="adam")
    sent = replace(seen, update=signs, kind="weights", protocol=protocol)
    assert doubts(victim, sent, "none") == ()
    assert doubts(victim, replace(sent, protocol=replace(protocol, optimiser="sgd")), "none") != ()


@pytest.mark.parametrize("rate", [1e-1, 1e-3, 1e-5, 1e-7])
def test_rounding_of_trained_weights_is_not_taken_for_a_defence(rate: float) -> None:
    victim, _ = update("mlp", "none")
    images, labels = PHOTOS.train.batch(range(2))
    protocol = Protocol(name="fedavg", local_steps=1, batch_size=2, learning_rate=rate)
    seen = train(victim, PHOTOS.inputs.normalise(images), labels, [[0, 1]], protocol)
    assert doubts(victim, seen, "none") == ()


def test_what_several_updates_show_is_counted_by_kind_and_quoted_where_it_is_largest() -> None:
    small, large = (Sighting(sentence=Reason(f"noise of {size}", "noise"), size=size) for size in (1.0, 2.0))
    honest = Sighting(sentence=Reason("weight decay", "innocent-rest"), contradicts=False)
    assert common_sightings([(small, honest), (large,), ()]) == (
        ["noise of 2.0 (2 of 3 updates looked at)"],
        ["weight decay (1 of 3 updates looked at)"],
    )


def test_the_verdict_says_that_the_clients_did_not_do_what_the_tape_announces(tmp_path: Path) -> None:
    tape = tape_federation(tmp_path / "run", rounds=1, defence="prune:share=0.9").tape  # its clients never prune
    record = audit_tape(tape, out=tmp_path / "audit", attacks=["first-layer"], victims=2)
    said = because("pruning-not-applied", share=0.9)
    assert record.federations[0].doubts == [f"{said} (2 of 2 updates looked at)"]
    assert record.federations[0].doubt_codes == ["pruning-not-applied"]
    (found,) = verdicts(record)
    assert "What was attacked may not be what was announced" in found.cautions[0]
