"""Metrics against scikit-image, formulas and brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import metrics as skimage_metrics

from attacker.metrics import similarity
from tests.oracles import wilson_by_formula


def pair(n: int = 3, channels: int = 3, height: int = 9, width: int = 11, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(n, channels, height, width, generator=generator)
    return (truth + 0.2 * torch.randn(truth.shape, generator=generator)).clamp(0, 1), truth


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(1, 3),
    channels=st.integers(1, 4),
    height=st.integers(7, 12),
    width=st.integers(7, 12),
    seed=st.integers(0, 99),
)
def test_similarity_equals_scikit_image(n, channels, height, width, seed):
    images, truth = pair(n, channels, height, width, seed)
    values = zip(
        similarity.mse(images, truth), similarity.psnr(images, truth), similarity.ssim(images, truth), strict=True
    )
    for (mse, psnr, ssim), image, true in zip(values, images.double().numpy(), truth.double().numpy(), strict=True):
        assert float(mse) == pytest.approx(skimage_metrics.mean_squared_error(true, image), rel=1e-12)
        assert float(psnr) == pytest.approx(
            skimage_metrics.peak_signal_noise_ratio(true, image, data_range=1), rel=1e-12
        )
        last = np.moveaxis(true, 0, -1), np.moveaxis(image, 0, -1)
        expected = skimage_metrics.structural_similarity(*last, data_range=1, channel_axis=-1)
        assert float(ssim) == pytest.approx(expected, abs=1e-12)


def test_values_are_per_image_and_in_float64():
    images, truth = pair(3)
    images[1] = truth[1]
    assert similarity.mse(images, truth)[1] == 0
    assert similarity.psnr(images, truth)[1] == torch.inf
    assert float(similarity.ssim(images, truth)[1]) == pytest.approx(1)
    assert similarity.mse(images, truth)[0] > 0
    for metric in (similarity.mse, similarity.psnr, similarity.ssim):
        value = metric(images, truth)
        assert (value.shape, value.dtype) == ((3,), torch.float64)
        torch.testing.assert_close(value[:1], metric(images[:1], truth[:1]))


def test_images_are_clamped():
    _, truth = pair(1)
    black = torch.zeros_like(truth)
    assert torch.equal(similarity.mse(black - 5, truth), similarity.mse(black, truth))
    assert float(similarity.ssim(truth + 10 * (truth - 0.5).sign(), (truth > 0.5).float())) == pytest.approx(1)


@pytest.mark.parametrize("metric", [similarity.mse, similarity.psnr, similarity.ssim, similarity.match_batch])
def test_images_that_cannot_be_compared(metric):
    images, truth = pair()
    with pytest.raises(ValueError, match="one shape"):
        metric(images, truth[:1])
    with pytest.raises(ValueError, match="one shape"):
        metric(images[0], truth[0])
    images[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="finite images"):
        metric(images, truth)
    with pytest.raises(ValueError, match="finite truth"):
        metric(truth, images)


def test_images_smaller_than_the_ssim_window():
    images, truth = pair(height=6)
    with pytest.raises(ValueError, match="7 x 7.*6 x 11.*psnr"):
        similarity.ssim(images, truth)


def test_success_counts_from_the_threshold_on():
    values = torch.tensor([0.59, 0.6, 0.61, 1.0], dtype=torch.float64)
    assert similarity.success_rate(values, threshold=0.6) == 0.75
    assert similarity.success_rate(values, threshold=0.9) == 0.25
    for bad in (torch.tensor([]), torch.tensor([torch.nan]), torch.tensor([[0.5]])):
        with pytest.raises(ValueError, match="1 or more images"):
            similarity.success_rate(bad, threshold=0.6)


@given(victims=st.integers(1, 300), share=st.floats(0, 1), confidence=st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_interval_equals_the_formula(victims, share, confidence):
    successes = round(share * victims)
    low, high = similarity.wilson_interval(successes, victims, confidence=confidence)
    expected = wilson_by_formula(successes, victims, confidence)
    assert (low, high) == pytest.approx(expected, abs=1e-9)
    assert 0 <= low <= successes / victims <= high <= 1


@pytest.mark.parametrize(("successes", "victims"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_interval_of_nonsense(successes, victims):
    with pytest.raises(ValueError, match="1 or more victims"):
        similarity.wilson_interval(successes, victims)


def test_wilson_confidence_is_a_share():
    with pytest.raises(ValueError, match="such as 0.95"):
        similarity.wilson_interval(1, 2, confidence=95)


def test_label_accuracy_counts_repetitions():
    truth = torch.tensor([5, 5, 5, 2])
    assert similarity.label_accuracy(torch.tensor([2, 5, 5, 5]), truth) == 1
    assert similarity.label_accuracy(torch.tensor([5, 2, 2, 2]), truth) == 0.5
    assert similarity.label_accuracy(torch.tensor([0, 1, 3, 4]), truth) == 0
    with pytest.raises(ValueError, match="one shape"):
        similarity.label_accuracy(torch.tensor([1]), truth)
    with pytest.raises(ValueError, match="one shape"):
        similarity.label_accuracy(torch.tensor([]), torch.tensor([]))


@settings(max_examples=15, deadline=None)
@given(batch=st.integers(1, 5), seed=st.integers(0, 99))
def test_matching_is_the_cheapest_permutation(batch, seed):
    images, truth = pair(batch, 1, 2, 2, seed)
    permutation = similarity.match_batch(images, truth)
    assert sorted(permutation.tolist()) == list(range(batch))
    cheapest = min(
        float(similarity.mse(images[list(order)], truth).sum()) for order in itertools.permutations(range(batch))
    )
    assert float(similarity.mse(images[permutation], truth).sum()) == pytest.approx(cheapest, abs=1e-12)


def test_matching_undoes_a_shuffle():
    _, truth = pair(6, 1, 8, 8)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(3))
    permutation = similarity.match_batch(truth[order], truth)
    assert torch.equal(truth[order][permutation], truth)
    assert math.isinf(float(similarity.psnr(truth[order][permutation], truth).min()))
