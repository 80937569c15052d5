"""Canaries: where they are, which are in, how they enter, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from clients.train import defended_gradient, defended_training
from fl_precode.defences.registry import gradient_defence
from fl_precode.federation.config import Settings, SettingsError
from fl_precode.federation.federation import prepare
from fl_precode.local_training import batch_gradient
from fl_precode.models.input_spec import InputSpec
from fl_precode.privacy.canaries import Canaries, Inserted, included
from fl_precode.privacy.canary_images import canary_images, image_scores, with_canary_images
from fl_precode.privacy.one_run import separation
from fl_precode.privacy.released import released_by

SECRET = "that no server may know"
SHAPES = {"first": (5, 7), "second": (65,)}


def inserted(count=20, norm=1.0, **more):
    canaries = Canaries(count=count, norm=norm, **more)
    return Inserted(canaries=canaries, inside=included(SECRET, "7", 1, count))


def test_each_canary_has_its_norm_and_is_orthogonal_to_the_others():
    canaries = Canaries(count=10, norm=3.0)
    rows = [torch.cat([v.flatten() for v in canaries.shares(one, SHAPES).values()]) for one in np.eye(10)]
    gram = torch.stack(rows) @ torch.stack(rows).T
    torch.testing.assert_close(gram, 9.0 * torch.eye(10, dtype=torch.float64))


def test_scores_tell_what_came_through():
    entering = inserted(norm=0.5)
    empty = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    update = entering.added_to(empty)
    np.testing.assert_allclose(entering.canaries.scores(update, SHAPES), entering.inside, atol=1e-6)
    # A tensor that did not come takes nothing from what the others show.
    np.testing.assert_allclose(
        entering.canaries.scores({"second": update["second"]}, SHAPES), entering.inside, atol=1e-6
    )
    lost = Canaries(count=100).scores({"second": update["second"], "first": None}, SHAPES)
    assert np.isnan(lost).sum() == 35, "a canary for each number, and those of one tensor are lost"


def test_half_of_the_canaries_are_in_and_others_at_each_client_and_in_each_round():
    drawn = [included(SECRET, node, number, 4000) for node, number in (("7", 1), ("7", 2), ("8", 1))]
    assert all(abs(one.mean() - 0.5) < 0.04 for one in drawn)
    assert all(abs((one == other).mean() - 0.5) < 0.04 for one, other in zip(drawn, drawn[1:], strict=False))
    assert not np.array_equal(drawn[0], included(SECRET + "!", "7", 1, 4000))
    with pytest.raises(ValueError, match="at least 16 characters"):
        included("short", "7", 1, 10)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("count=0", "at least one canary"),
        ("norm=0", "positive, finite norm"),
        ("norm=inf", "positive, finite norm"),
        ("count=many", "whole number"),
        ("images=3", "no option 'images'"),
        ("round=-1", "0 or more"),
    ],
)
def test_canaries_that_make_no_sense_are_refused(text, words):
    with pytest.raises(ValueError, match=words):
        Canaries.parse(text)
    with pytest.raises(SettingsError, match="canaries: "):
        Settings(canaries=text)


def test_more_canaries_than_numbers_are_refused():
    with pytest.raises(ValueError, match="at most 100"):
        Canaries(count=101).places(100)


def test_a_run_without_canaries_says_nothing_of_them():
    assert "canaries" not in Settings().to_run_config()
    assert Settings(canaries="count=9").to_run_config()["canaries"] == "count=9"
    assert Canaries(round=3).enter(3)
    assert not Canaries(round=3).enter(2)


def sent(spec, entering, steps=0):
    """What a client sends, as an update."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.Tanh(), nn.Linear(40, 3))
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    batch = torch.randn(4, 1, 8, 8), torch.arange(4) % 3
    chain = gradient_defence(spec)
    if not steps:
        return defended_gradient(net, batch, chain, None, canaries=entering)[0]
    defended_training(net, [batch] * steps, chain, None, learning_rate=0.1, canaries=entering)
    return {name: p.detach() - before[name] for name, p in net.named_parameters()}


@pytest.mark.parametrize(
    ("spec", "steps", "mu"),
    [
        ("dp:max_norm=1,noise_multiplier=0.5", 0, 2.0),
        ("dp:max_norm=0.1,noise_multiplier=0.5", 0, 2.0),  # each canary is clipped, as an example is
        ("dp:max_norm=1,noise_multiplier=0.5", 2, 2.0 * math.sqrt(2)),
        ("clip:max_norm=1+noise:std=0.01", 0, None),
        ("clip:max_norm=1+noise:std=0.01", 2, None),
    ],
)
def test_canaries_meet_the_clip_and_the_noise_that_images_meet(spec, steps, mu):
    entering = inserted(count=400)
    update = sent(spec, entering, steps)
    scores = entering.canaries.scores(update, {name: tuple(value.shape) for name, value in update.items()})
    if spec.startswith("dp") and steps:
        scores = -scores
    # The clip of an update leaves all its canaries together the clip's norm.
    wanted = mu if mu is not None else 1 / (0.01 * math.sqrt(entering.inside.sum()))
    low, _, high = separation(scores, entering.inside, confidence=0.9999)
    assert low < wanted * 1.05
    assert high > wanted * 0.9
    assert high < wanted * 1.6


def test_canaries_change_nothing_else_and_none_changes_nothing():
    plain, other = sent("none", None), sent("none", inserted())
    expected = inserted().added_to(plain)
    for name, value in other.items():
        torch.testing.assert_close(value, expected[name])


def test_which_defence_is_a_mechanism():
    assert released_by("dp:max_norm=3,noise_multiplier=0.5").unit == "image"
    assert released_by("precode+dp:max_norm=3,noise_multiplier=0.5+sign").mu == 2.0
    assert released_by("clip:max_norm=2+prune:share=0.5+noise:std=0.1").mu == pytest.approx(20)
    assert released_by("clip:max_norm=1+sign+noise:std=1").mu == 1  # signs times their mean size are no longer
    announced = released_by("local-dp:clip=1,sensitivity=1e-4,epsilon=10,delta=1e-5")
    assert (announced.claimed, announced.unit) == (10, "client")
    assert 1 / announced.mu == pytest.approx(4.845e-5, rel=1e-3)
    for nothing in (
        "none", "noise:std=1", "clip:max_norm=1", "noise:std=1+clip:max_norm=1", "precode", "unknown",
        "dp:max_norm=1,noise_multiplier=0",
        "local-dp:clip=1,sensitivity=0,epsilon=10", "local-dp:clip=1,sensitivity=1,epsilon=0",
    ):  # fmt: skip
        assert released_by(nothing) is None, nothing


def test_a_model_that_is_too_small_is_refused_before_a_process_starts():
    with pytest.raises(ValueError, match="no more canaries than the update has numbers"):
        prepare(Settings(dataset="digits", model="mlp", canaries="count=100000000"))


def test_each_client_has_directions_of_its_own_in_each_round():
    canaries = Canaries(count=20)
    drawn = [canaries.of(node, number).places(100) for node, number in (("7", 1), ("7", 2), ("8", 1))]
    for first, second in zip(drawn, drawn[1:], strict=False):
        assert not np.array_equal(first[0], second[0])
        assert not np.array_equal(first[1], second[1])
    np.testing.assert_array_equal(canaries.of("7", 1).places(100)[0], drawn[0][0])


def test_canary_images_are_known_and_are_looked_for_by_their_gradients():
    inputs = InputSpec(channels=1, height=8, width=8, classes=3, mean=(0.5,), std=(0.5,))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3))
    canaries = Canaries.parse("count=40,as=images")
    images, labels = canary_images(canaries, inputs)
    assert torch.equal(images, canary_images(canaries, inputs)[0])
    assert (images.shape, int(labels.max())) == ((40, 1, 8, 8), 2)
    inside = np.arange(40) % 2 == 0
    batch = with_canary_images((torch.zeros(1, 1, 8, 8), torch.tensor([1])), canaries, inside, inputs)
    assert len(batch[1]) == 21
    gradients, _ = batch_gradient(model, batch)
    scores = image_scores(model, dict(gradients), (images, labels))
    assert scores[inside].min() > scores[~inside].max(), "without noise each is told from the others"
    lacking = {name: value for name, value in gradients.items() if name.startswith("1.")}
    assert scores.shape == image_scores(model, lacking, (images, labels), clip=1.0, noise=0.1).shape
    canaries.check(1)  # images need no numbers of their own
    with pytest.raises(ValueError, match="leave norm out"):
        Canaries.parse("count=5,as=images,norm=2")
    with pytest.raises(ValueError, match="as gradients or as images"):
        Canaries.parse("as=words")


def test_more_canary_images_than_can_be_compared_are_refused(monkeypatch):
    monkeypatch.setattr("fl_precode.privacy.canary_images.MOST_NUMBERS", 1_000)
    inputs = InputSpec(channels=1, height=8, width=8, classes=3, mean=(0.5,), std=(0.5,))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    update = {name: value.detach() for name, value in model.named_parameters()}
    with pytest.raises(ValueError, match="give a count of at most 5"):
        image_scores(model, update, canary_images(Canaries(count=6, kind="images"), inputs))
