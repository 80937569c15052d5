"""Reconstruction robustness: how often any attack succeeds at most, by what guessing reaches and what is released.

Hayes, Mahloujifar, Balle, NeurIPS 2023, in the form of trade-off functions (Dong, Roth, Su 2022): if the best guess
without the release succeeds with probability kappa, then no attack that sees the release succeeds more often than
``1 - f(kappa)``, with f the trade-off function of the release. Needs scipy, as all of the audit does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import erfcx, ndtr, ndtri

PrivacyCurve = Callable[[float], float]
"""Epsilon of 0 or more to the least delta such that the release is (epsilon, delta)-differentially private."""

_POINTS = 2_001
"""Epsilons that are tried; each gives a bound that holds, and the least of them is taken."""


def most_successes(
    prior: float, curve: PrivacyCurve, reverse: PrivacyCurve | None = None, *, at: Sequence[float] = ()
) -> float:
    """The share of successes that no attack exceeds, for any privacy curve.

    ``min over eps >= 0 of min(e^eps prior + delta, 1 - e^-eps (1 - prior - delta))``: what (eps, delta)-differential
    privacy says of the successes, and what it says of the failures. Where the two directions of the neighbouring data
    differ, as they do for subsampled releases, a curve for each gives the least bound; one that is meant for both
    holds.

    Args:
        prior: Probability that the best guess without the release succeeds, in [0, 1].
        curve: Curve of the whole release, of all rounds and steps that are seen: how far it exceeds, with the secret,
            what it is without.
        reverse: The same the other way round; None takes ``curve``, which must hold for both then, as an accountant's
            does.
        at: Further epsilons of 0 or more to try, such as one at which the curve has a step.

    Raises:
        ValueError: If the prior is no probability, or the curve gives a delta that is none.

    >>> round(most_successes(0.1, lambda epsilon: 0.0 if epsilon >= 1 else 1.0, at=[1]), 6)  # pure epsilon of 1
    0.271828
    """
    _check_probability("prior", prior)
    least = 1.0
    for epsilon in (*_epsilons(prior), *at):
        delta = curve(epsilon)
        other = delta if reverse is None else reverse(epsilon)
        _check_probability("delta", delta)
        _check_probability("delta", other)
        raised = math.exp(epsilon) * prior + delta if epsilon < 700 else math.inf
        kept = 1.0 - math.exp(-epsilon) * max(0.0, 1.0 - prior - other)
        least = min(least, raised, kept)
    return max(prior, least)


def most_successes_gaussian(prior: float, mu: float) -> float:
    """The same where a Gaussian mechanism is released: ``Phi(Phi^-1(prior) + mu)``, exact.

    Args:
        prior: Probability that the best guess without the release succeeds, in [0, 1].
        mu: Distance of what is told apart over the deviation of the noise, of 0 or more: 1 over the noise multiplier
            for one release, times the square root of their number for several (`composed`). Infinite without noise.

    Raises:
        ValueError: If the prior is no probability, or mu is negative.

    >>> round(most_successes_gaussian(0.05, 1 / 1.1), 4), most_successes_gaussian(0.0, 3.0)
    (0.2309, 0.0)
    """
    _check_probability("prior", prior)
    if not mu >= 0:
        raise ValueError(f"expected mu, a signal over its noise, to be 0 or more, got {mu}")
    if prior in (0.0, 1.0):
        return prior
    return max(prior, float(ndtr(ndtri(prior) + mu)))


def composed(mu: float, releases: int) -> float:
    """The mu of several releases of a Gaussian mechanism, each of this mu.

    >>> composed(0.5, 4)
    1.0
    """
    return mu * math.sqrt(releases)


def gaussian_delta(epsilon: float, mu: float) -> float:
    """The privacy curve of a Gaussian mechanism, exact for every epsilon (Balle, Wang, ICML 2018).

    ``Phi(-eps/mu + mu/2) - e^eps Phi(-eps/mu - mu/2)``, reckoned so that no large epsilon overflows.

    Args:
        epsilon: 0 or more.
        mu: As in `most_successes_gaussian`.

    >>> round(gaussian_delta(1.0, 1.0), 6), gaussian_delta(0.0, 0.0)
    (0.126937, 0.0)
    """
    if mu == 0:
        return 0.0
    if math.isinf(mu):
        return 1.0
    near, far = mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu
    # e^eps Phi(far) = phi-like tail at near times a scaled tail of far: no overflow, and no cancellation below 0.
    tail = math.exp(-near * near / 2) / 2
    second = tail * float(erfcx(-far / math.sqrt(2)))
    first = tail * float(erfcx(-near / math.sqrt(2))) if near < 0 else float(ndtr(near))
    return min(1.0, max(0.0, first - second))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The least epsilon of a Gaussian mechanism at a delta, by bisection of `gaussian_delta`; infinite without noise.

    Args:
        mu: As in `most_successes_gaussian`.
        delta: In (0, 1).

    Raises:
        ValueError: If mu is negative, or delta is not between 0 and 1.

    >>> round(gaussian_epsilon(1.0, 1e-5), 3), f"{gaussian_epsilon(1 / 4.845e-5, 1e-5):.3g}"
    (4.377, '2.13e+08')
    """
    if not (mu >= 0 and 0 < delta < 1):
        raise ValueError(f"expected mu of 0 or more and delta between 0 and 1, got {mu} and {delta}")
    if math.isinf(mu):
        return math.inf
    low, high = 0.0, mu * mu / 2 + 40 * mu + 1.0
    if gaussian_delta(0.0, mu) <= delta:
        return 0.0
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if gaussian_delta(middle, mu) > delta else (low, middle)
    return high


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The largest mu of a Gaussian mechanism that is (epsilon, delta)-differentially private.

    Args:
        epsilon: 0 or more, finite.
        delta: In (0, 1).

    >>> round(gaussian_mu(4.377, 1e-5), 3)
    1.0
    """
    low, high = 0.0, math.sqrt(2 * epsilon) + 40.0
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if gaussian_delta(epsilon, middle) <= delta else (low, middle)
    return low


def _epsilons(prior: float) -> list[float]:
    """Epsilons of 0 or more, up to where they say nothing any more."""
    most = 2.0 + max(-math.log(part) for part in (max(prior, 1e-300), max(1.0 - prior, 1e-300)))
    return [float(epsilon) for epsilon in np.linspace(0.0, min(most, 700.0), _POINTS)]


def _check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"expected {name} to be a probability from 0 to 1, got {value}")
