"""The lower bound by canaries: never above the truth more often than it says, and not far below it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import nct

from fl_precode.privacy.one_run import guess_and_refute, refuted_epsilon, separation
from fl_precode.privacy.robustness import gaussian_epsilon, gaussian_mu

DELTA = 1e-5


def gaussian_run(mu, draw, canaries=1000):
    inside = draw.random(canaries) < 0.5
    return mu * inside + draw.standard_normal(canaries), inside


@pytest.mark.parametrize("epsilon", [1.0, 100.0])
def test_a_gaussian_release_is_hardly_ever_overrated(epsilon):
    draw = np.random.default_rng(1)
    mu = gaussian_mu(epsilon, DELTA)
    lows = np.array([separation(*gaussian_run(mu, draw), zero_outside=True)[0] for _ in range(150)])
    assert (lows > mu).sum() <= 10, "2.5 % of 150 are 4"
    median = gaussian_epsilon(float(np.median(lows)), DELTA)
    assert epsilon / 2 < median < epsilon


def test_randomised_response_is_hardly_ever_overrated_and_nearly_found():
    draw = np.random.default_rng(2)
    found = []
    for _ in range(100):
        inside = draw.random(1000) < 0.5
        told = np.where(draw.random(1000) < 1 / (1 + math.exp(-2.0)), inside, ~inside)
        found.append(guess_and_refute(told + 1e-9 * draw.random(1000), inside).epsilon)
    assert np.mean(np.array(found) <= 2.0) >= 0.95
    assert np.median(found) > 1.5


def test_the_papers_own_figures():
    assert refuted_epsilon(1000, 100, 75, delta=1e-4) == pytest.approx(0.673, abs=1e-3)


def test_guesses_that_are_all_right_refute_about_the_logarithm_of_their_number():
    assert refuted_epsilon(1000, 1000, 1000) == pytest.approx(5.809, abs=1e-3)
    assert refuted_epsilon(1000, 1000, 1000) < math.log(1000)


@pytest.mark.parametrize(("seen", "canaries"), [(0.4, 12), (1.5, 1000)])
def test_the_interval_is_that_of_the_noncentral_t(seen, canaries):
    inside = np.arange(canaries) % 2 == 0
    scores = np.where(np.arange(canaries) // 2 % 2 == 0, 1.0, -1.0) + seen * inside
    low, middle, high = separation(scores, inside)
    unit = math.sqrt(4 / canaries)
    statistic = middle / unit
    for end, level in ((low, 0.975), (high, 0.025)):
        if end > 0:
            assert nct.cdf(statistic, canaries - 2, end / unit) == pytest.approx(level, abs=1e-3)


def test_canaries_of_updates_that_leave_less_of_each_are_no_noise():
    draw = np.random.default_rng(4)
    groups = np.repeat(np.arange(4), 250)
    of_each = np.array([90.0, 95.0, 100.0, 105.0])[groups]
    lows = []
    for _ in range(100):
        inside = draw.random(1000) < 0.5
        scores = of_each * inside + draw.standard_normal(1000)
        assert separation(scores, inside, zero_outside=True)[0] < 25, "differences between updates count as noise"
        lows.append(separation(scores, inside, zero_outside=True, groups=groups)[0] - of_each[inside].mean())
    assert np.mean(np.array(lows) <= 0) >= 0.94
    assert np.median(lows) > -6
    # As many means as canaries leave nothing to measure a deviation by.
    assert separation(np.ones(4), np.array([True, True, False, False]), zero_outside=True, groups=np.arange(4))[2] > 0
    assert separation(*gaussian_run(2.0, draw), zero_outside=True, groups=np.zeros(1000, dtype=np.int64))[0] > 1.5


def test_scores_without_noise_are_infinitely_apart_and_canaries_that_do_not_show_are_not():
    inside = np.arange(20) % 2 == 0
    assert separation(inside.astype(float), inside) == (math.inf, math.inf, math.inf)
    assert separation(np.zeros(20), inside) == (0.0, 0.0, 0.0)
    dropped = np.random.default_rng(3).standard_normal(20)
    assert separation(dropped, inside)[0] == 0.0
    assert guess_and_refute(dropped, inside).epsilon < 0.5


def test_too_few_canaries_say_nothing_and_none_is_refused():
    one = np.array([True])
    assert separation(np.array([3.0]), one) == (0.0, 0.0, math.inf)
    assert guess_and_refute(np.array([3.0]), one).epsilon == 0.0
    for function in (separation, guess_and_refute):
        with pytest.raises(ValueError, match="at least one canary"):
            function(np.zeros(0), np.zeros(0, dtype=bool))
    with pytest.raises(ValueError, match="at least one canary"):
        refuted_epsilon(0, 0, 0)
    with pytest.raises(ValueError, match="right <= guesses"):
        refuted_epsilon(10, 5, 6)
