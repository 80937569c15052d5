"""Exact intervals and exact tests, against scipy and against what they promise."""

from __future__ import annotations

import pytest
from scipy.stats import binom, binomtest

from attacker.metrics.intervals import chance_of_so_many, exact_interval


@pytest.mark.parametrize(("seen", "trials"), [(0, 1), (1, 1), (0, 60), (60, 64), (3, 4), (17, 40)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_it_is_clopper_and_pearsons(seen, trials, confidence):
    expected = binomtest(seen, trials).proportion_ci(confidence_level=confidence, method="exact")
    assert exact_interval(seen / trials, trials, confidence=confidence) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("trials", [1, 4, 20])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.97])
def test_it_misses_the_true_share_no_more_often_than_promised(trials, share):
    missed = 0.0
    for seen in range(trials + 1):
        low, high = exact_interval(seen / trials, trials)
        missed += 0 if low <= share <= high else binom.pmf(seen, trials, share)
    assert missed <= 0.05 + 1e-12


def test_fewer_independent_trials_make_it_wider():
    wide, narrow = exact_interval(60 / 64, 8), exact_interval(60 / 64, 64)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize("arguments", [(1.1, 3), (-0.1, 3), (0.5, 0)])
def test_what_is_no_share_of_trials_is_refused(arguments):
    with pytest.raises(ValueError, match="expected a share"):
        exact_interval(*arguments)


def test_equal_chances_make_a_binomial_tail_and_others_their_product():
    assert chance_of_so_many(7, [0.3] * 10) == pytest.approx(binom.sf(6, 10, 0.3))
    assert chance_of_so_many(3, [0.1, 0.2, 0.5]) == pytest.approx(0.01)
    assert chance_of_so_many(2, [0.1]) == 0
