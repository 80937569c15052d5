"""The attack that follows the announced defence: distance and layers, part by part."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from attacker.attacks import GradientMatching, Outcome, build_attack
from attacker.attacks.adaptive.defence_matched import DefenceMatched
from attacker.gradients.trace import trace
from attacker.reasons import because
from attacker.victim import Victim
from fl_precode import Protocol
from fl_precode.defences.registry import gradient_defence
from fl_precode.models import InputSpec, build_model
from tests.attacker import tiny
from tests.attacker.bottlenecked import SPEC, spread
from tests.attacker.members import error, run, victim_of

X = tiny.images(SPEC, 1)
SEARCH = GradientMatching().with_options(iterations=25, total_variation=0.0)
ATTACK = DefenceMatched(matching=SEARCH)
LABEL = [torch.tensor([0])]


def sent(victim, defence, **changes):
    """What a client with this announced defence sends."""
    seen = tiny.observe(victim, X, [0])
    chain = gradient_defence(defence)
    update = seen.update
    if chain is not None:
        update = chain(
            update, generator=torch.Generator().manual_seed(1), model=victim.model, batch=(X, torch.tensor([0]))
        )
    victim.model.eval()
    protocol = Protocol(name="fedsgd", batch_norm="buffers", defence=defence)
    return replace(seen, update=update, protocol=replace(protocol, **changes))


def plain(victim, observation, **changes):
    return run(SEARCH.with_options(**changes), victim, [observation], labels=LABEL)[0]


@pytest.mark.parametrize(
    ("defence", "distance"),
    [
        ("noise:std=1e-3", "l2-relative"),
        ("noise:std=1e-5+clip:max_norm=1e-2", "cosine"),
        ("noise:std=1e-5+clip:max_norm=1e+2", "l2-relative"),  # it was not clipped: its scale is known
        ("laplace:std=1e-3", "l1-relative"),
        ("laplace:std=1e-3+clip:max_norm=1e-2", "l1-direction"),
        ("prune:share=0.5", "cosine-kept"),
        ("noise:std=1e-3+prune:share=0.5", "l2-relative-kept"),
        ("noise:std=1e-3+prune:share=0.5+clip:max_norm=1e-2", "cosine-kept"),
        ("local-dp:clip=1e-2,sensitivity=1e-4,epsilon=10,delta=1e-5", "cosine"),
        ("local-dp:clip=1e+2,sensitivity=1e-4,epsilon=10,delta=1e-5", "l2-relative"),  # it was not clipped
    ],
)
def test_the_distance_follows_the_noise(defence, distance):
    victim = victim_of(tiny.convnet)
    seen = sent(victim, defence)
    (one,) = run(ATTACK, victim, [seen], labels=LABEL)
    assert one.reason == because("distance-chosen", distance=distance)
    assert torch.equal(one.inputs, plain(victim, seen, distance=distance).inputs)


@pytest.mark.parametrize("name", ["percentile", "svt"])
def test_of_what_a_filter_sent_only_the_numbers_count_that_it_left_as_they_were(name):
    victim = victim_of(tiny.convnet)
    before = sent(victim, "none")
    sizes = torch.cat([value.abs().flatten() for value in before.update.values()])
    half, most = float(sizes.quantile(0.5)), float(sizes.quantile(0.8))
    seen = sent(
        victim, {"percentile": f"percentile:share=70,gamma={most}", "svt": f"svt:gamma={half},epsilon=100"}[name]
    )
    masked = {
        key: torch.where((value == before.update[key]) & ((value.abs() > half) | (name == "percentile")), value, 0)
        for key, value in seen.update.items()
    }
    left_out = sum(int((masked[key] != value).sum()) for key, value in seen.update.items())
    assert left_out > 0.02 * len(sizes), "the filter cut numbers, or made them noisy"
    (one,) = run(ATTACK, victim, [seen], labels=LABEL)
    assert one.reason == because("distance-chosen", distance="cosine-kept")
    expected = plain(victim, replace(seen, update=masked), distance="cosine-kept").inputs
    assert torch.equal(one.inputs, expected)


def test_labels_are_read_off_all_that_a_filter_sent():
    inputs = InputSpec(channels=3, height=32, width=32, classes=10, mean=(0.5,) * 3, std=(0.5,) * 3)
    victim = Victim(model=build_model("lenet", inputs, seed=0), inputs=inputs, name="lenet")
    image, spec = tiny.images(inputs, 1).float(), "percentile:share=90,gamma=0.1"
    protocol = Protocol(name="fedsgd", batch_norm="buffers", defence=spec)
    for label in (3, 7):
        seen = tiny.observe(victim, image, [label])
        batch = (image, torch.tensor([label]))
        filtered = gradient_defence(spec)(seen.update, generator=torch.Generator(), model=victim.model, batch=batch)
        # The label's numbers are the largest, and cut: among those that count in the search they are not.
        assert float(seen.update["classifier.bias"][label]) < -0.1
        (one,) = run(ATTACK, victim, [replace(seen, update=filtered, protocol=protocol)])
        assert one.labels.tolist() == [label]


def test_where_a_filter_cut_everything_signs_are_compared():
    victim = victim_of(tiny.convnet)
    seen = sent(victim, "percentile:share=70,gamma=1e-9")
    (one,) = run(ATTACK, victim, [seen], labels=LABEL)
    assert one.reason == because("distance-chosen", distance="signs-kept")


def test_without_the_scale_the_distance_is_the_cosine():
    victim = victim_of(tiny.convnet)
    seen = replace(sent(victim, "noise:std=1e-3", local_steps=1), kind="weights")
    (one,) = run(ATTACK, victim, [seen], labels=LABEL)
    assert one.reason == because("distance-chosen", distance="cosine")


def test_observations_of_different_defences_keep_their_order():
    victim = victim_of(tiny.convnet)
    seen = [sent(victim, name) for name in ("noise:std=1e-3", "prune:share=0.5", "noise:std=1e-3", "none")]
    found = run(ATTACK, victim, seen)
    distances = ("l2-relative", "cosine-kept", "l2-relative")
    assert [one.reason for one in found[:3]] == [because("distance-chosen", distance=one) for one in distances]
    assert found[3].outcome is Outcome.NOT_APPLICABLE


def test_soterias_layer_is_left_out():
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(48, 10), nn.Sigmoid(), nn.Linear(10, 4)
    )
    victim = Victim(model=spread(model), inputs=SPEC)
    for defence, layer in (("soteria:share=0.6,layer=3", "3.weight"), ("soteria", "5.weight")):
        seen = sent(victim, defence)
        assert (seen.update[layer] == 0).any()
        (one,) = run(ATTACK, victim, [seen], labels=LABEL)
        assert torch.equal(one.inputs, plain(victim, seen, layers=f"!{layer}").inputs)
    longer = replace(ATTACK, matching=SEARCH.with_options(iterations=200))
    seen = sent(victim, "soteria:share=0.6,layer=3")
    (one,), (naive,) = (run(attack, victim, [seen], labels=LABEL) for attack in (longer, longer.matching))
    assert error(one, X) < error(naive, X)


@pytest.mark.parametrize("defence", ["precode", "precode+ppp:std=1e-3", "precode+prune:share=0.5"])
def test_behind_a_bottleneck_only_what_runs_before_its_noise_counts(defence):
    victim = victim_of(tiny.convnet, bottleneck=True)
    seen = sent(victim, defence)
    distance = {"precode": "cosine", "precode+ppp:std=1e-3": "l2-relative"}.get(defence, "cosine-kept")
    (one,) = run(ATTACK, victim, [seen], labels=LABEL)
    assert one.reason == ("" if defence == "precode" else because("distance-chosen", distance=distance))
    assert torch.equal(one.inputs, plain(victim, seen, layers="0.*|3.encoder.*", distance=distance).inputs)
    (more,) = run(replace(ATTACK, draws=3), victim, [seen], labels=LABEL)
    assert not torch.equal(one.inputs, more.inputs)


@pytest.mark.parametrize("defence", ["none", "clip:max_norm=1", "dp:max_norm=1,noise_multiplier=1", "dropout"])
def test_where_there_is_nothing_to_adapt_to_it_is_refused(defence):
    victim = victim_of(tiny.convnet)
    seen = replace(tiny.observe(victim, X, [0]), protocol=Protocol(defence=defence))
    (one,) = run(ATTACK, victim, [seen])
    assert one.outcome is Outcome.NOT_APPLICABLE
    assert one.reason_codes == ("defence-leaves-all",)


def test_what_was_announced_must_be_there():
    victim = victim_of(tiny.convnet)
    seen = tiny.observe(victim, X, [0])
    for protocol, code in (
        (Protocol(), "no-defence-announced"),
        (Protocol(defence="precode"), "no-bottleneck"),
        (Protocol(defence="soteria:layer=nowhere"), "defended-layer-missing"),
    ):
        (one,) = run(ATTACK, victim, [replace(seen, protocol=protocol)])
        assert one.reason_codes == (code,)
    assert not trace(victim).bottlenecks


def test_distance_and_layers_are_not_for_the_spec():
    for option in ("distance=l2", "layers=a"):
        with pytest.raises(ValueError, match="no option"):
            build_attack(f"defence-matched:{option}")
    assert build_attack("defence-matched:draws=2,iterations=9").draws == 2
