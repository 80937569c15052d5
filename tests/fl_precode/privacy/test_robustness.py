"""The bound on attacks, against attackers who do the best that can be done, on mechanisms that are simulated."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from fl_precode.privacy.robustness import (
    composed,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_mu,
    most_successes,
    most_successes_gaussian,
)

TRIALS = 200_000
CHANCE = 4 / math.sqrt(TRIALS)
"""Four standard deviations of a share at most."""


@pytest.mark.parametrize("mu", [0.1, 1.0, 3.0])
def test_the_best_attacker_on_gaussian_noise_meets_the_bound(mu):
    draw = np.random.default_rng(1)
    secret = draw.choice((-1.0, 1.0), TRIALS)  # a guess without the release is right half of the time
    successes = (np.sign(secret * mu + draw.standard_normal(TRIALS)) == secret).mean()
    assert successes == pytest.approx(most_successes_gaussian(0.5, mu), abs=CHANCE)


@pytest.mark.parametrize("rounds", [4, 25])
def test_several_rounds_are_one_of_a_larger_mu(rounds):
    draw = np.random.default_rng(2)
    secret = draw.choice((-1.0, 1.0), 20_000)
    seen = (secret[:, None] * 0.3 + draw.standard_normal((20_000, rounds))).sum(axis=1)
    successes = (np.sign(seen) == secret).mean()
    assert successes == pytest.approx(most_successes_gaussian(0.5, composed(0.3, rounds)), abs=4 / math.sqrt(20_000))


@pytest.mark.parametrize("mu", [0.5, 2.0, 4.0])
def test_one_of_many_candidates_stays_below_the_bound_and_near_it(mu):
    draw = np.random.default_rng(3)
    released = draw.standard_normal((20_000, 16))
    released[:, 0] += mu  # candidates are orthogonal, and the first is the secret
    successes = (released.argmax(axis=1) == 0).mean()
    most = most_successes_gaussian(1 / 16, mu)
    assert 0.6 * most < successes < most + 0.01


@pytest.mark.parametrize("epsilon", [0.2, 1.0, 5.0])
def test_the_best_attacker_on_laplace_noise_meets_the_bound(epsilon):
    draw = np.random.default_rng(4)
    secret = draw.choice((-1.0, 1.0), TRIALS)
    successes = (np.sign(secret + draw.laplace(scale=1 / epsilon, size=TRIALS)) == secret).mean()
    bound = most_successes(0.5, lambda tried: laplace_delta(tried, epsilon))
    assert successes == pytest.approx(bound, abs=CHANCE + 2e-3)


def laplace_delta(tried, epsilon):
    return max(0.0, 1 - math.exp((tried - epsilon) / 2))


@pytest.mark.parametrize(("share", "mu"), [(0.1, 1.0), (0.5, 2.0)])
def test_the_best_attacker_on_a_subsampled_release_meets_the_bound(share, mu):
    draw = np.random.default_rng(5)
    secret = draw.choice((-1.0, 1.0), TRIALS)
    taken = draw.random(TRIALS) < share
    successes = (np.sign(secret * mu * taken + draw.standard_normal(TRIALS)) == secret).mean()
    there, back = subsampled_curves(share, mu)
    bound = most_successes(0.5, there, back)
    assert successes == pytest.approx(bound, abs=CHANCE + 2e-3)
    both = most_successes(0.5, lambda epsilon: max(there(epsilon), back(epsilon)))
    assert bound < both < most_successes_gaussian(0.5, mu), "drawing by chance protects"


def subsampled_curves(share, mu):
    """With the secret over without it, and the other way round, by numerical integration."""
    x = np.linspace(-12, 12 + mu, 20_001)
    without, drawn = norm.pdf(x), (1 - share) * norm.pdf(x) + share * norm.pdf(x - mu)

    def curve(one, two):
        step = x[1] - x[0]
        return lambda epsilon: min(1.0, float(np.clip(one - math.exp(epsilon) * two, 0, None).sum() * step))

    return curve(drawn, without), curve(without, drawn)


@pytest.mark.parametrize("prior", [0.001, 0.05, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("mu", [0.1, 1.0, 5.0])
def test_the_bound_by_the_curve_is_the_exact_one(prior, mu):
    by_curve = most_successes(prior, lambda epsilon: gaussian_delta(epsilon, mu))
    assert by_curve == pytest.approx(most_successes_gaussian(prior, mu), abs=1e-4)


def test_the_curve_is_that_of_the_two_tails():
    for epsilon, mu in ((0.0, 0.5), (1.0, 1.0), (3.0, 2.0), (10.0, 2.0)):
        tails = norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)
        assert gaussian_delta(epsilon, mu) == pytest.approx(tails, rel=1e-6, abs=1e-15)


def test_epsilon_and_mu_are_each_others_inverse_at_any_size():
    for epsilon in (0.01, 1.0, 100.0, 2.1e8):
        assert gaussian_epsilon(gaussian_mu(epsilon, 1e-5), 1e-5) == pytest.approx(epsilon, rel=1e-6)
    # The defaults of a platform: clip 1, and noise for a sensitivity of 1e-4 at epsilon 10.
    assert gaussian_epsilon(1 / 4.845e-5, 1e-5) == pytest.approx(2.1e8, rel=0.02)


def test_the_ends():
    assert most_successes_gaussian(0.2, 0.0) == pytest.approx(0.2)
    assert most_successes_gaussian(0.2, math.inf) == 1.0
    assert most_successes(0.2, lambda epsilon: 1.0) == 1.0, "no privacy, no bound"
    assert (gaussian_epsilon(0.0, 1e-5), gaussian_epsilon(math.inf, 1e-5)) == (0.0, math.inf)
    for prior in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="prior to be a probability"):
            most_successes_gaussian(prior, 1.0)
    with pytest.raises(ValueError, match="0 or more"):
        most_successes_gaussian(0.5, -1.0)
    with pytest.raises(ValueError, match="delta between 0 and 1"):
        gaussian_epsilon(1.0, 0.0)
    with pytest.raises(ValueError, match="delta to be a probability"):
        most_successes(0.5, lambda epsilon: 2.0)
