"""Distances that fit a defence's noise, and layers that are left out, as settings of gradient matching."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attacker.attacks import PRESETS, GradientMatching, Outcome, build_attack
from attacker.attacks.gradient_matching.parameter_filter import matched_parameters
from attacker.attacks.likelihood_distance import DEFENCE_NOISE, MATCHED_DISTANCES, Noise, matched_distance
from attacker.gradients.distances import DISTANCES
from attacker.metrics.similarity import mse
from attacker.reasons import because
from fl_precode import Protocol
from tests.attacker import tiny

SPEC = tiny.inputs()
QUICK = GradientMatching().with_options(iterations=300, total_variation=0.0, restarts=4)
SMOOTH = PRESETS["idlg"].with_options(iterations=300, restarts=3)


def victim_of():
    torch.manual_seed(0)
    model = tiny.mlp(SPEC)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.5, 0.5)
    return tiny.victim(model, SPEC)


def attack(settings, victim, observation):
    (found,) = settings(victim, [observation], generator=torch.Generator().manual_seed(0))
    return found


def error(found, x):
    return float(mse(SPEC.denormalise(found.inputs), SPEC.denormalise(x)))


def altered(observation, change):
    generator = torch.Generator().manual_seed(3)
    return replace(observation, update={name: change(value, generator) for name, value in observation.update.items()})


def prune(value, generator):
    return value * (torch.rand(value.shape, generator=generator) >= 0.5)


@pytest.mark.parametrize(
    ("settings", "kept"), [(QUICK, "cosine-kept"), (SMOOTH, "l2-kept")], ids=["signed adam", "l-bfgs"]
)
def test_a_pruned_update_is_matched_where_it_was_sent(settings, kept):
    victim, x = victim_of(), tiny.images(SPEC, 1)
    observation = altered(tiny.observe(victim, x, [1]), prune)
    all_elements, sent = (attack(one, victim, observation) for one in (settings, settings.with_options(distance=kept)))
    assert error(sent, x) < 1e-3 < error(all_elements, x)
    assert sent.outcome is Outcome.CONVERGED


def test_outliers_are_shrugged_off_by_absolute_differences():
    victim, x = victim_of(), tiny.images(SPEC, 1)

    def outliers(value, generator):
        return value + 10 * value.abs().max() * (torch.rand(value.shape, generator=generator) < 0.02)

    observation = altered(tiny.observe(victim, x, [1]), outliers)
    squared, absolute = (
        attack(QUICK.with_options(distance=name, signed=True, iterations=600), victim, observation)
        for name in ("l2", "l1")
    )
    assert error(absolute, x) < 1e-3 < error(squared, x)


@pytest.mark.parametrize("distance", ["l1", "l2", "l2-kept"])
def test_an_unknown_scale_is_refused_where_it_matters(distance):
    victim = victim_of()
    step = tiny.observe(victim, tiny.images(SPEC, 1), [2], learning_rate=0.05)
    settings = QUICK.with_options(iterations=1, distance=distance)
    assert settings.refuses(victim, step) is None
    refused = attack(settings, victim, replace(step, protocol=Protocol()))
    assert refused.outcome is Outcome.NOT_APPLICABLE
    assert refused.reason_codes[0] == "scale-needed"
    for name in ("cosine", "cosine-kept"):
        assert settings.with_options(distance=name).refuses(victim, replace(step, protocol=Protocol())) is None


def test_a_layer_full_of_noise_can_be_left_out():
    victim, x = victim_of(), tiny.images(SPEC, 1)
    good = tiny.observe(victim, x, [1])
    noise = torch.randn(good.update["3.weight"].shape, dtype=torch.float64)
    observation = replace(good, update={**good.update, "3.weight": noise})
    whole, without = (attack(QUICK.with_options(layers=layers), victim, observation) for layers in ("", "!3.weight"))
    assert error(without, x) < 1e-3 < error(whole, x)
    chosen, shallower = (
        attack(QUICK.with_options(layers=layers), victim, observation) for layers in ("1.*|3.bias", "!deeper:0.5")
    )
    assert torch.equal(chosen.inputs, without.inputs)
    assert error(shallower, x) < 1e-3
    turned = replace(
        observation,
        update=dict(reversed(observation.update.items())),
        parameters=dict(reversed(observation.parameters.items())),
    )
    assert error(attack(QUICK.with_options(layers="!deeper:0.5"), victim, turned), x) < 1e-3
    kept = attack(QUICK.with_options(layers="!3.weight", distance="cosine-kept"), victim, observation)
    assert error(kept, x) < 1e-3


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ("conv*", r"'conv\*' fits no parameter; there are 1.weight, 1.bias, 3.weight, 3.bias"),
        ("1.*|!1.*", "leaves no parameter to match; there are 1.weight"),
        ("!*", "leaves no parameter"),
    ],
)
def test_patterns_that_choose_nothing_are_refused(layers, words):
    victim = victim_of()
    observation = tiny.observe(victim, tiny.images(SPEC, 1), [1])
    found = attack(QUICK.with_options(layers=layers), victim, observation)
    assert found.outcome is Outcome.NOT_APPLICABLE
    with pytest.raises(ValueError, match=words):
        matched_parameters(layers, list(observation.parameters))


def test_an_update_that_is_zero_where_it_counts_has_no_direction():
    victim = victim_of()
    good = tiny.observe(victim, tiny.images(SPEC, 1), [1])
    observation = replace(good, update={**good.update, "1.weight": torch.zeros_like(good.update["1.weight"])})
    assert QUICK.with_options(layers="1.weight").refuses(victim, observation) == because("no-direction")
    assert QUICK.with_options(layers="1.*").refuses(victim, observation) is None


def test_patterns_choose_and_leave_out():
    names = ["conv1.weight", "conv1.bias", "conv2.weight", "classifier.weight"]
    for layers, wanted in {
        "": names,
        "conv*": names[:3],
        "conv*|!*.bias": ["conv1.weight", "conv2.weight"],
        "!classifier.*|!*.bias": ["conv1.weight", "conv2.weight"],
        "conv?.bias|classifier.*": ["conv1.bias", "classifier.weight"],
        "deeper:0.67": ["conv2.weight", "classifier.weight"],
        "deeper:0.01": ["classifier.weight"],
        "!deeper:0.67": ["conv1.weight", "conv1.bias"],
        "deeper:0.67|!classifier.*": ["conv2.weight"],
    }.items():
        assert matched_parameters(layers, names) == set(wanted)


@pytest.mark.parametrize("share", ["", "0", "1", "-0.5", "nan", "half"])
def test_a_share_of_the_layers_is_between_none_and_all(share):
    with pytest.raises(ValueError, match="share of the layers between 0 and 1"):
        QUICK.with_options(layers=f"!deeper:{share}")


def test_specs_carry_distances_and_layers():
    found = build_attack("inverting-gradients:distance=cosine-kept,layers=!classifier.*|conv1.*")
    assert found == GradientMatching().with_options(distance="cosine-kept", layers="!classifier.*|conv1.*")
    assert found.name == "inverting-gradients"
    assert build_attack("inverting-gradients:layers=deeper:0.5") == GradientMatching().with_options(layers="deeper:0.5")


def test_every_noise_has_a_distance_and_every_defence_a_noise():
    assert set(MATCHED_DISTANCES) == set(Noise)
    assert set(MATCHED_DISTANCES.values()) <= set(DISTANCES)
    for name in DEFENCE_NOISE:
        assert matched_distance(name) in DISTANCES


@pytest.mark.parametrize(
    ("defence", "distance"),
    [
        ("none", "cosine"),
        ("precode:latent=64", "cosine"),
        ("noise:std=0.01", "l2-relative"),
        ("laplace:scale=0.01", "l1-relative"),
        ("prune:share=0.9", "cosine-kept"),
        ("precode+laplace:scale=0.1", "l1-relative"),
        ("precode+ppp:std=0.1", "l2-relative"),
        ("quantise:bits=4", "l2-relative"),
        ("clip:max_norm=1", "cosine"),
        ("noise:std=0.1+prune:share=0.9", "l2-relative-kept"),
        ("prune:share=0.9+laplace:std=0.1", "l1-relative-kept"),
        ("noise:std=0.1+clip:max_norm=1", "cosine"),
        ("laplace:std=0.1+clip:max_norm=1", "l1-direction"),
        ("laplace:std=0.1+prune:share=0.9+sign", "l1-direction-kept"),
        ("sign+prune:share=0.9", "signs-kept"),
    ],
)
def test_the_distance_follows_the_announced_defence(defence, distance):
    assert matched_distance(defence) == distance


def test_the_noise_of_a_foreign_defence_is_not_guessed():
    with pytest.raises(ValueError, match=r"'blur' is not known; it is for none, precode, "):
        matched_distance("precode+blur")


@pytest.mark.parametrize("local_training", ["unrolled", "surrogate"])
def test_replays_of_several_steps_compare_only_what_was_sent(local_training):
    victim, x = victim_of(), tiny.images(SPEC, 1)
    several = tiny.observe(victim, x, [2], learning_rate=0.05)
    protocol = Protocol(name="fedavg", local_steps=3, learning_rate=0.05, batch_size=1, weight_decay=0.01)
    sent = {name: torch.where(torch.rand_like(value) < 0.5, value, 0) for name, value in several.update.items()}
    several = replace(several, update=sent, protocol=protocol)
    settings = QUICK.with_options(iterations=1, local_training=local_training)
    found = {
        distance: attack(settings.with_options(distance=distance), victim, several).starting_loss
        for distance in ("cosine", "cosine-kept", "l1-relative", "l1-relative-kept")
    }
    assert len(set(found.values())) == 4
    assert found["cosine-kept"] < found["cosine"]
    assert found["l1-relative-kept"] < found["l1-relative"]
