"""When an image counts as reconstructed."""

from __future__ import annotations

import pytest

from attacker.audit.record.counting import comparable, counts, near_miss, needed
from tests.attacker.records import rows

THRESHOLD = 0.6


def _row(**changes):
    return rows("f1", "first-layer", 1, **changes)[0]


@pytest.mark.parametrize(
    ("ssim", "guess", "reconstructed", "near"),
    [
        (0.6, 0.1, True, False),
        (0.599, 0.1, False, True),
        (0.49, 0.1, False, False),
        (0.7, 0.8, False, False),  # worse than a guess
        (0.84, 0.8, False, False),  # hardly better than one
        (0.86, 0.8, True, False),
        (0.977, 0.97, False, False),
        (1.0, 0.97, True, False),
        (1.0, 1.0, False, False),  # the guess is the image: nothing shows that the update gave it
        (None, 0.1, False, False),
    ],
)
def test_an_image_counts_beyond_the_threshold_and_the_best_guess(ssim, guess, reconstructed, near):
    row = _row(ssim=ssim, baseline_ssim=0.05, guess_ssim=guess)
    assert counts(row, THRESHOLD) is reconstructed
    assert near_miss(row, THRESHOLD) is near


def test_an_older_record_is_counted_beyond_its_mean_image():
    assert not counts(_row(ssim=0.7, baseline_ssim=0.8, guess_ssim=None), THRESHOLD)
    assert counts(_row(ssim=0.9, baseline_ssim=0.8, guess_ssim=None), THRESHOLD)


def test_without_truth_or_where_an_attack_does_not_fit_nothing_counts():
    unknown = _row(ssim=None, baseline_ssim=None, guess_ssim=None)
    unfit = _row(ssim=0.9, baseline_ssim=0.1, guess_ssim=0.1, outcome="not_applicable")
    for row in (unknown, unfit):
        assert not comparable(row)
        assert not counts(row, THRESHOLD)


def test_more_is_needed_where_one_can_guess_well():
    assert needed(None, THRESHOLD) == THRESHOLD
    assert needed(0.9, THRESHOLD) == pytest.approx(0.925)
