"""Attacks that answer a bottleneck: what they match, what they refuse, and that every option matters."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from attacker.attacks import ATTACKS, PRESETS, GradientMatching, Outcome, build_attack, recover_noise
from attacker.attacks.adaptive.ignore import Ignore
from attacker.attacks.adaptive.noise_recovery import NoiseRecovery
from attacker.attacks.adaptive.noise_restoring import NoiseRestoring
from attacker.gradients.noise_free_layers import before_noise
from attacker.gradients.trace import trace
from attacker.victim import Victim
from fl_precode import Protocol, VariationalBottleneck
from tests.attacker import tiny
from tests.attacker.bottlenecked import (
    SPEC,
    Shortcut,
    both_kinds,
    client,
    convolutional,
    normal,
    spread,
    two_bottlenecks,
)
from tests.attacker.members import error, measured, run, victim_of

SEARCH = GradientMatching().with_options(iterations=30, total_variation=0.0)
NAMES = ("ignore", "noise-restoring", "noise-recovery")
X = tiny.images(SPEC, 1)


def observed(victim, count=1, batch=1, **changes):
    shapes = trace(victim).latents
    return [
        client(
            victim,
            tiny.images(SPEC, batch, seed=index),
            [(index + image) % 4 for image in range(batch)],
            [normal(batch, *latent, seed=100 * index + place) for place, latent in enumerate(shapes)],
            node=str(index),
            **changes,
        )
        for index in range(count)
    ]


@pytest.mark.parametrize(
    ("victim", "kept"),
    [
        (two_bottlenecks(), {"0.weight", "0.bias", "3.encoder.weight", "3.encoder.bias"}),
        (convolutional(), {"0.weight", "0.bias", "1.encoder.weight"}),
        (both_kinds(), {"0.weight", "0.bias", "1.encoder.weight"}),
        # What runs in front of the bottleneck and again behind it counts as behind; the shortcut runs later.
        (Victim(model=spread(Shortcut()), inputs=SPEC), {"stem.weight", "stem.bias", "bottleneck.encoder.weight"}),
        (victim_of(tiny.convnet), set()),
    ],
    ids=["two", "convolutional", "both", "residual", "none"],
)
def test_what_runs_before_the_noise_is_read_off_the_model(victim, kept):
    assert before_noise(trace(victim)) == kept
    assert before_noise(trace(victim), encoder=False) == {name for name in kept if "encoder" not in name}


def test_ignore_is_blind_to_what_comes_after_the_noise():
    victim = victim_of(tiny.convnet, bottleneck=True)
    (seen,) = observed(victim)
    late = {name: g + torch.randn_like(g) if "decoder" in name or name.startswith("4") else g
            for name, g in seen.update.items()}  # fmt: skip
    label = [torch.tensor([0])]
    plain, same = (run(Ignore(matching=SEARCH), victim, [one], labels=label)[0]
                   for one in (seen, replace(seen, update=late)))  # fmt: skip
    assert torch.equal(plain.inputs, same.inputs)
    early = {name: g + torch.randn_like(g) if name == "3.encoder.weight" else g for name, g in seen.update.items()}
    (other,) = run(Ignore(matching=SEARCH), victim, [replace(seen, update=early)], labels=label)
    assert not torch.equal(plain.inputs, other.inputs)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_bottleneck_they_are_refused(name):
    victim = victim_of(tiny.convnet)
    (one,) = run(build_attack(name), victim, [tiny.observe(victim, X, [0])])
    assert one.outcome is Outcome.NOT_APPLICABLE
    assert one.reason_codes == ("no-bottleneck",)


def test_a_bottleneck_without_anything_before_it_still_leaves_its_encoder():
    victim = Victim(
        model=spread(nn.Sequential(nn.Flatten(), VariationalBottleneck(36, latent=5), nn.Linear(36, 4))), inputs=SPEC
    )
    (seen,) = observed(victim)
    assert run(Ignore(matching=SEARCH), victim, [seen])[0].inputs is not None
    (recovered,) = run(NoiseRecovery(matching=SEARCH), victim, [seen])
    assert recovered.inputs is not None
    zero = replace(seen, update={n: torch.zeros_like(g) if "encoder" in n else g for n, g in seen.update.items()})
    (refused,) = run(Ignore(matching=SEARCH), victim, [zero])
    assert refused.reason_codes == ("nothing-before-noise",), "what did not move is no equation"


def test_noise_recovery_names_the_rank_that_stands_against_it():
    victim = victim_of(tiny.convnet, bottleneck=True)
    (pair,) = observed(victim, batch=2)
    (one,) = run(NoiseRecovery(matching=SEARCH), victim, [pair])
    assert one.outcome is Outcome.NOT_APPLICABLE
    assert one.reason_codes == ("several-images",)
    (conv,) = run(NoiseRecovery(matching=SEARCH), convolutional(), observed(convolutional()))
    assert conv.reason_codes == ("bottleneck-is-convolutional",)


def test_noise_recovery_knows_the_noise_and_says_how_well():
    victim = two_bottlenecks()
    seen = observed(victim, 2)
    for index, one in enumerate(run(NoiseRecovery(matching=SEARCH), victim, seen)):
        for place, (found, latent) in enumerate(zip(one.noise, trace(victim).latents, strict=True)):
            assert torch.allclose(found, normal(1, *latent, seed=100 * index + place), rtol=0, atol=1e-9)
        assert "noise-recovered" in one.reason_codes
        assert all(f"the noise of {name!r} was recovered" in one.reason for name in ("3", "6"))


def test_what_is_not_recovered_is_searched():
    victim = both_kinds()
    (seen,) = observed(victim)
    (one,) = run(NoiseRecovery(matching=SEARCH.with_options(iterations=60)), victim, [seen])
    true = [normal(1, *latent, seed=place) for place, latent in enumerate(trace(victim).latents)]
    assert torch.allclose(one.noise[1], true[1], rtol=0, atol=1e-9)
    assert one.noise[0].shape == true[0].shape
    assert one.reason_codes[:2] == ("noise-recovered", "bottleneck-is-convolutional")
    _, second = recover_noise(victim, seen).bottlenecks
    assert second is not None


@pytest.mark.parametrize("build", [lambda: victim_of(tiny.convnet, bottleneck=True), convolutional, two_bottlenecks])
def test_noise_restoring_finds_image_and_noise_together(build):
    victim = build()
    (seen,) = observed(victim)
    attack = NoiseRestoring(matching=SEARCH.with_options(iterations=200))
    (one,) = run(attack, victim, [seen])
    true = [normal(1, *latent, seed=place) for place, latent in enumerate(trace(victim).latents)]
    assert [value.shape for value in one.noise] == [value.shape for value in true]
    at_own = measured(victim, seen, one, [value[None, None] for value in one.noise])
    assert at_own == pytest.approx(one.matching_loss, rel=1e-6, abs=1e-10)  # the best iterate keeps its noise
    assert one.matching_loss < 0.01
    (plain,) = run(SEARCH.with_options(iterations=200), victim, [seen])
    assert error(one, X) < error(plain, X)


CHANGES = [
    ("ignore", {"draws": 3}),
    ("ignore", {"iterations": 20}),
    ("noise-restoring", {"noise_rate": 0.01}),
    ("noise-restoring", {"learning_rate": 0.02}),
    ("noise-recovery", {"feature_weight": 0.0}),
    ("noise-recovery", {"layers": "*"}),
    ("noise-recovery", {"preset": "precode-paper", "iterations": 30}),
]


@pytest.mark.parametrize(("name", "changed"), CHANGES, ids=str)
def test_every_option_changes_the_result(name, changed):
    victim = victim_of(tiny.convnet, bottleneck=True)
    seen = observed(victim, 2)
    base = {"iterations": 30}
    specs = [f"{name}:" + ",".join(f"{k}={v}" for k, v in one.items()) for one in (base, base | changed)]
    for one, other in zip(*(run(build_attack(spec), victim, seen) for spec in specs), strict=True):
        assert not torch.equal(one.inputs, other.inputs)


def test_the_rate_for_noise_that_is_not_recovered_changes_the_result():
    victim = both_kinds()
    seen = observed(victim)
    (one,), (other,) = (run(NoiseRecovery(matching=SEARCH, noise_rate=rate), victim, seen) for rate in (0.1, 0.01))
    assert not torch.equal(one.inputs, other.inputs)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("ignore:draws=0", "draws to be a whole number of 1 or more"),
        ("ignore:layers=a", "no option 'layers'"),
        ("ignore:preset=dlg", "searches by Adam"),
        ("noise-restoring:noise_rate=0", "positive, finite noise_rate"),
        ("noise-recovery:feature_weight=-1", "feature_weight of 0 or more"),
        ("noise-recovery:noise_rate=inf", "positive, finite noise_rate"),
        ("noise-recovery:iterations=0", "iterations"),
    ],
)
def test_wrong_options_are_named(spec, words):
    with pytest.raises(ValueError, match=words):
        build_attack(spec)


@pytest.mark.parametrize("name", NAMES)
def test_seeds_decide_everything_and_neighbours_nothing(name):
    victim = victim_of(tiny.convnet, bottleneck=True)
    seen = observed(victim, 3)
    attack = build_attack(f"{name}:iterations=25,restarts=2")
    first = run(attack, victim, seen)
    torch.manual_seed(99)
    again, other = run(attack, victim, seen), run(attack, victim, seen, seed=1)
    small = run(build_attack(f"{name}:iterations=25,restarts=2,memory=1e-9"), victim, seen)
    for a, b, c, d in zip(first, again, other, small, strict=True):
        assert torch.equal(a.inputs, b.inputs)
        assert not torch.equal(a.inputs, c.inputs)
        assert torch.allclose(a.inputs, d.inputs, rtol=0, atol=1e-6)
    assert not torch.equal(first[0].inputs, first[1].inputs)


@pytest.mark.parametrize("name", ["ignore:draws=2", "noise-restoring"])
def test_batches_and_local_training_are_attacked(name):
    victim = victim_of(tiny.convnet, bottleneck=True)
    spec = f"{name}{',' if ':' in name else ':'}iterations=10"
    (pair,) = observed(victim, batch=2)
    (one,) = run(build_attack(spec), victim, [pair])
    assert one.inputs.shape == (2, *SPEC.shape)
    assert [value.shape for value in one.noise] == ([] if "ignore" in name else [(2, 5)])
    protocol = Protocol(name="fedavg", local_steps=2, learning_rate=0.1, batch_size=1, batch_norm="buffers")
    steps = {name: -0.1 * g for name, g in pair.update.items()}
    for how in ("unrolled", "surrogate", "one-gradient"):
        several = replace(pair, kind="weights", update=steps, protocol=protocol)
        (one,) = run(build_attack(f"{spec},local_training={how}"), victim, [several])
        assert one.inputs is not None, one.reason


def test_labels_that_are_not_granted_are_recovered():
    victim = victim_of(tiny.convnet, bottleneck=True)
    seen = observed(victim, 2)
    for name in NAMES:
        assert [one.labels.tolist() for one in run(build_attack(f"{name}:iterations=3"), victim, seen)] == [[0], [1]]


def test_registered_names_are_those_of_the_attacks():
    for name in (*NAMES, "dropout-inversion", "defence-matched"):
        assert build_attack(name).name == name
        assert ATTACKS[name].adaptive
        assert build_attack(name).matching == PRESETS["inverting-gradients"]
