"""Bad settings and bad problems: a ValueError that teaches, or a named outcome, never a wrong image."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from torch import nn

from attacker.attacks import (
    ATTACKS,
    Attack,
    FirstLayerInversion,
    GradientMatching,
    Outcome,
    Reconstruction,
    build_attack,
)
from attacker.reasons import Reason, because
from attacker.victim import Victim
from fl_precode import Observation, Protocol
from fl_precode.models.input_spec import InputSpec
from tests.attacker import tiny

MATCHING = GradientMatching().with_options(iterations=3)
SPEC = tiny.inputs()


def victim_of(build=tiny.mlp, **options) -> Victim:
    torch.manual_seed(0)
    return tiny.victim(build(SPEC, **options), SPEC)


def run(attack: Attack, victim: Victim, observation: Observation, labels=None) -> Reconstruction:
    granted = None if labels is None else [labels]
    return attack(victim, [observation], generator=torch.Generator().manual_seed(0), labels=granted)[0]


def check_refused(found: Reconstruction, expected: str | Reason) -> None:
    """By a code, or a reason with its values."""
    assert found.outcome is Outcome.NOT_APPLICABLE
    assert expected in (found.reason if isinstance(expected, Reason) else found.reason_codes)
    assert found.inputs is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"restarts": 0}, "restarts"),
        ({"iterations": 0}, "iterations"),
        ({"iterations": 1.5}, "iterations"),
        ({"restarts": True}, "restarts"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("inf")}, "learning_rate"),
        ({"total_variation": -1e-3}, "total_variation"),
        ({"total_variation": float("nan")}, "total_variation"),
        ({"converged_below": 0.0}, "converged_below"),
        ({"signed": 1}, "signed"),
        ({"boxed": "yes"}, "boxed"),
    ],
    ids=str,
)
def test_settings_out_of_range(changed, words):
    with pytest.raises(ValueError, match=words):
        MATCHING.with_options(**changed)


def test_unknown_settings_are_type_errors():
    with pytest.raises(TypeError, match="restart_count"):
        GradientMatching(restart_count=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="keyword|positional"):
        GradientMatching(10)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("gradient-inversion", f"expected one of {', '.join(ATTACKS)}"),
        ("inverting-gradients:restart=2", "has no option 'restart'; it has .*restarts"),
        ("first-layer:restarts=2", "it has none"),
        ("inverting-gradients:restarts=two", "whole number"),
        ("inverting-gradients:restarts=0", "restarts=0.*1 or more"),
        ("inverting-gradients:signed=maybe", "true, false"),
        ("inverting-gradients:preset=geiping", "precode-paper"),
        ("inverting-gradients:learning_rate=fast", "a number"),
    ],
)
def test_bad_specs_say_what_exists(spec, words):
    with pytest.raises(ValueError, match=words):
        build_attack(spec)


@pytest.mark.parametrize("attack", [MATCHING, FirstLayerInversion()], ids=lambda one: one.name)
def test_granted_labels_are_checked(attack):
    victim = victim_of()
    observation = tiny.observe(victim, tiny.images(SPEC, 1), [1])
    for labels, words in [
        (torch.tensor([4]), "from 0 to 3"),
        (torch.tensor([-1]), "from 0 to 3"),
        (torch.tensor([0, 1]), r"shape \(1,\)"),
        (torch.tensor([0.0]), "whole numbers"),
    ]:
        with pytest.raises(ValueError, match=words):
            run(attack, victim, observation, labels)
    with pytest.raises(ValueError, match="labels for 1 observations, got 2"):
        attack(victim, [observation], generator=torch.Generator(), labels=[None, None])


@pytest.mark.parametrize("attack", [MATCHING, FirstLayerInversion()], ids=lambda one: one.name)
def test_updates_that_no_attack_can_use(attack):
    victim = victim_of()
    good = tiny.observe(victim, tiny.images(SPEC, 1), [1])
    for bad in (float("nan"), float("inf")):
        broken = {**good.update, "1.weight": torch.full_like(good.update["1.weight"], bad)}
        check_refused(
            run(attack, victim, replace(good, update=broken)), because("update-not-finite", names=["1.weight"])
        )
    other = victim_of(tiny.convnet)
    check_refused(run(attack, other, good), "another-model")
    zero = {name: torch.zeros_like(value) for name, value in good.update.items()}
    code = {"inverting-gradients": "no-direction", "first-layer": "gradient-is-zero"}[attack.name]
    check_refused(run(attack, victim, replace(good, update=zero)), code)


@pytest.mark.parametrize("attack", [MATCHING, FirstLayerInversion()], ids=lambda one: one.name)
@pytest.mark.parametrize("protocol", [Protocol(), Protocol(local_steps=4), Protocol(local_epochs=2)], ids=str)
def test_local_training_on_one_image_is_attacked_whatever_was_announced(attack, protocol):
    victim = victim_of()
    step = tiny.observe(victim, tiny.images(SPEC, 1), [1], learning_rate=0.1, protocol=protocol)
    assert run(attack, victim, step).inputs is not None


def test_first_layer_refuses_weight_decay_that_it_cannot_take_back():
    victim = victim_of()
    step = tiny.observe(victim, tiny.images(SPEC, 1), [1], learning_rate=0.1)
    for protocol in (Protocol(local_steps=2, weight_decay=0.1, learning_rate=0.1), Protocol(weight_decay=0.1)):
        check_refused(run(FirstLayerInversion(), victim, replace(step, protocol=protocol)), "weight-decay")


@pytest.mark.parametrize(
    ("changed", "protocol", "reason"),
    [
        (
            {"local_training": "unrolled"},
            {"local_steps": 4},
            because("training-unknown", what="the learning rate, the images of one local step"),
        ),
        (
            {"local_training": "unrolled"},
            {"learning_rate": 0.1, "batch_size": 1},
            because("training-unknown", what="local steps or epochs"),
        ),
        ({"distance": "l2"}, {"local_steps": 4}, "learning-rate-unknown"),
        ({"distance": "l2"}, {"local_epochs": 1, "learning_rate": 0.1}, "steps-unknown"),
    ],
)
def test_replays_of_local_training_refuse_what_they_cannot_know(changed, protocol, reason):
    victim = victim_of()
    pair = tiny.observe(victim, tiny.images(SPEC, 2), [1, 2], learning_rate=0.1, protocol=Protocol(**protocol))
    check_refused(run(MATCHING.with_options(**changed), victim, pair, torch.tensor([1, 2])), reason)


@pytest.mark.parametrize("way", ["unrolled", "surrogate"])
def test_a_gradient_is_no_local_training(way):
    victim = victim_of()
    gradient = tiny.observe(victim, tiny.images(SPEC, 1), [1])
    check_refused(run(MATCHING.with_options(local_training=way), victim, gradient), "one-gradient")


def test_matching_needs_a_batch_size_and_labels():
    victim = victim_of(NoLinear)
    pair = tiny.observe(victim, tiny.images(SPEC, 2), [1, 2])
    check_refused(run(MATCHING, victim, replace(pair, batch_size=None)), "batch-size-unknown")
    check_without_labels(run(MATCHING, victim, four(victim)))
    assert run(MATCHING, victim, pair, torch.tensor([1, 2])).inputs.shape == (2, 1, 6, 6)


def four(victim: Victim) -> Observation:
    """Four images have 35 possible labels of four classes: too many to try each."""
    return tiny.observe(victim, tiny.images(SPEC, 4), [1, 2, 3, 3])


def check_without_labels(found: Reconstruction) -> None:
    assert found.outcome is Outcome.ITERATION_LIMIT  # it fits, and its images were not reconstructed
    assert found.reason_codes[0] == "labels-unknown"
    assert found.inputs is None


class NoLinear(nn.Module):
    """Ends in a convolution: iDLG has nothing to look at."""

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.conv = nn.Conv2d(spec.channels, spec.classes, spec.height)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).flatten(1)


def test_matching_without_a_linear_layer_tries_all_labels_unless_they_are_granted():
    victim = victim_of(NoLinear)
    observation = tiny.observe(victim, tiny.images(SPEC, 1), [1])
    tried, told = run(MATCHING, victim, observation), run(MATCHING, victim, observation, torch.tensor([1]))
    assert "labels-tried" in tried.reason_codes
    assert tried.inputs is not None
    assert told.reason == ""
    assert told.inputs is not None


def test_one_observation_without_labels_does_not_stop_the_others():
    victim = victim_of(NoLinear)
    pair = tiny.observe(victim, tiny.images(SPEC, 2), [1, 2])
    one = tiny.observe(victim, tiny.images(SPEC, 1), [1])
    granted = [None, torch.tensor([1]), torch.tensor([1, 2])]
    found = MATCHING(victim, [four(victim), one, pair], generator=torch.Generator(), labels=granted)
    check_without_labels(found[0])
    assert [None if r.inputs is None else len(r.inputs) for r in found] == [None, 1, 2]


def test_labels_of_a_batch_are_recovered():
    victim = victim_of()
    pair = tiny.observe(victim, tiny.images(SPEC, 2), [1, 2])
    assert run(MATCHING, victim, pair).labels.tolist() == [1, 2]


def test_no_observation_is_no_work():
    assert MATCHING(victim_of(), [], generator=torch.Generator()) == []
    assert FirstLayerInversion()(victim_of(), [], generator=torch.Generator()) == []


@pytest.mark.parametrize("restarts", [1, 3])
def test_divergence_is_an_outcome(restarts):
    victim = victim_of()
    observation = tiny.observe(victim, tiny.images(SPEC, 1), [1])
    wild = GradientMatching().with_options(iterations=20, learning_rate=1e308, boxed=False, restarts=restarts)
    found = run(wild, victim, observation)
    assert found.outcome is Outcome.DIVERGED
    assert found.reason == because("distance-not-finite", restarts=restarts)
    assert found.inputs is not None  # the start was measured before it went wrong
    assert bool(found.inputs.isfinite().all())


def test_weights_that_are_not_finite_diverge_at_once():
    victim = victim_of()
    good = tiny.observe(victim, tiny.images(SPEC, 1), [1])
    broken = {**good.parameters, "1.bias": torch.full_like(good.parameters["1.bias"], float("nan"))}
    found = run(MATCHING.with_options(iterations=1000), victim, replace(good, parameters=broken))
    assert found.outcome is Outcome.DIVERGED
    assert found.reason == because("distance-not-finite.never", restarts=1)
    assert found.inputs is None
    assert found.matching_loss is None
    assert found.iterations == 1


class Steps(nn.Module):
    """Rounds its input away: the gradient does not depend on the image."""

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.head = nn.Linear(spec.height * spec.width, spec.classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.detach().flatten(1))


def test_models_that_cannot_be_differentiated_twice_are_named():
    victim = victim_of(Steps)
    observation = tiny.observe(victim, tiny.images(SPEC, 1), [1])
    with pytest.raises(ValueError, match="twice differentiable"):
        run(MATCHING, victim, observation)


def test_the_dense_path_is_said_in_the_log(caplog):
    victim = victim_of(lambda spec: nn.Sequential(nn.PReLU(), tiny.mlp(spec)))
    observation = tiny.observe(victim, tiny.images(SPEC, 1), [1])
    with caplog.at_level(logging.DEBUG, logger="attacker.gradients"):
        assert run(MATCHING, victim, observation).inputs is not None
    assert "PReLU" in caplog.text
