"""A lower bound of epsilon from one run with canaries, each in with probability 1/2 (Steinke, Nasr, Jagielski 2023).

Two tests. `refuted_epsilon` counts right guesses and supposes nothing about the release; all guesses right, r of them
refute an epsilon of about log(r) and no more. `separation` compares the scores of canaries that are in with those that
are out, and supposes that both are normal with one deviation, as Gaussian noise makes them: it has no such limit.
Needs scipy, as all of the audit does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtr
from scipy.stats import binom, chi2

CONFIDENCE = 0.95

SHARES = (1.0, 0.5, 0.2)
"""Shares of the canaries that are guessed; the others are abstained from. All are tried, and the confidence pays."""

_FEWEST = 2
"""Canaries in, and canaries out, below which no deviation can be measured."""

_QUANTILES = 2_001
"""Of the deviation that is measured, by which the noncentral t distribution is averaged."""


@dataclass(frozen=True, kw_only=True)
class Guessed:
    """How an auditor guessed.

    Attributes:
        guesses: Canaries that were guessed to be in or out.
        right: Guesses among them that are right.
        epsilon: That is refuted with the confidence asked for.
    """

    guesses: int
    right: int
    epsilon: float


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Largest probability of this many right guesses under (epsilon, delta)-differential privacy.

    For delta 0 the number of right guesses is dominated by a binomial one of chance ``e^eps / (1 + e^eps)``; a delta
    adds ``2 m delta max over i of P[v > B >= v - i] / i``.

    Args:
        canaries: m, each in with probability 1/2.
        guesses: r, of the m.
        right: v, of the r.
        epsilon: 0 or more.
        delta: In [0, 1).

    >>> round(p_value(100, 100, 75, math.log(3), 0.0), 3)
    0.553
    """
    chance = 1.0 / (1.0 + math.exp(-epsilon))
    tail = float(binom.sf(right - 1, guesses, chance))
    if delta > 0 and right > 0:
        below = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guesses, chance))
        tail += 2 * canaries * delta * float((below / np.arange(1, right + 1)).max())
    return min(1.0, tail)


@lru_cache(maxsize=4096)
def refuted_epsilon(
    canaries: int, guesses: int, right: int, *, delta: float = 0.0, confidence: float = CONFIDENCE
) -> float:
    """The largest epsilon that this many right guesses refute: the release is not (epsilon, delta)-private below it.

    Args:
        canaries: m, each in with probability 1/2.
        guesses: Canaries that were guessed to be in or out.
        right: Guesses that are right.
        delta: In [0, 1).
        confidence: In (0, 1).

    Raises:
        ValueError: If there is no canary, or the numbers are out of order.

    >>> round(refuted_epsilon(1000, 100, 75, delta=1e-4), 2), refuted_epsilon(1000, 1000, 500)
    (0.67, 0.0)
    """
    if not 0 <= right <= guesses <= canaries or canaries < 1:
        raise ValueError(
            f"expected right <= guesses <= canaries, and 1 canary or more, got {right} right of {guesses} guesses of "
            f"{canaries} canaries"
        )
    level = 1.0 - confidence
    low, high = 0.0, 1.0
    if p_value(canaries, guesses, right, 0.0, delta) >= level:
        return 0.0
    while p_value(canaries, guesses, right, high, delta) < level:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(canaries, guesses, right, middle, delta) < level else (low, middle)
    return low


def guess_and_refute(
    scores: NDArray[np.float64], inside: NDArray[np.bool_], *, delta: float = 0.0, confidence: float = CONFIDENCE
) -> Guessed:
    """Guess the canaries of highest score to be in and those of lowest to be out, and see what that refutes.

    Each share of `SHARES` is tried at a confidence such that all of them together keep the one asked for.

    Args:
        scores: (m,) the higher, the more likely in.
        inside: (m,) which canaries were in; joined by the evaluation alone.
        delta: In [0, 1).
        confidence: In (0, 1).

    Raises:
        ValueError: If there is no canary, or not as many scores.
    """
    _check(scores, inside)
    order = np.argsort(scores, kind="stable")
    each = 1.0 - (1.0 - confidence) / len(SHARES)
    tried = []
    for share in SHARES:
        half = int(share * len(scores)) // 2
        if not half:
            continue
        right = int((~inside[order[:half]]).sum() + inside[order[-half:]].sum())
        epsilon = refuted_epsilon(len(scores), 2 * half, right, delta=delta, confidence=each)
        tried.append(Guessed(guesses=2 * half, right=right, epsilon=epsilon))
    if not tried:
        return Guessed(guesses=0, right=0, epsilon=0.0)
    return max(tried, key=lambda guessed: (guessed.epsilon, guessed.guesses))


def separation(
    scores: NDArray[np.float64],
    inside: NDArray[np.bool_],
    *,
    confidence: float = CONFIDENCE,
    zero_outside: bool = False,
    groups: NDArray[np.int64] | None = None,
) -> tuple[float, float, float]:
    """How far apart canaries that are in and out score, over the deviation within: mu, and its interval's two ends.

    Exact where both are normal with one deviation: Student's t of the difference follows a noncentral t distribution,
    whose noncentrality is mu times the root of a number of canaries. Both ends together have the confidence, so that
    the lower one alone is exceeded in 97.5 % at 95 %. Scores without any deviation that differ are infinitely apart.

    Args:
        scores: (m,) the higher, the more likely in.
        inside: (m,) which canaries were in; joined by the evaluation alone.
        confidence: In (0, 1).
        zero_outside: Whether canaries that are out are known to score 0 on average, as those of random signs do. Then
            those that are in need no comparison, and the interval is narrower by a third.
        groups: (m,) whole numbers, with ``zero_outside``: canaries of one number were scaled alike, as those that share
            a clip are. Means that differ from one group to the next are no noise then; mu is that of their mean.

    Returns:
        Lower end, estimate and upper end, none below 0. (0, 0, inf) where fewer than two canaries are on a side.

    Raises:
        ValueError: If there is no canary, or not as many scores.
    """
    _check(scores, inside)
    those_in, those_out = scores[inside], scores[~inside]
    if min(len(those_in), len(those_out)) < _FEWEST:
        return 0.0, 0.0, math.inf
    middle = 0.0 if zero_outside else float(those_out.mean())
    own, means = _mean_of_each(those_in, groups[inside] if zero_outside and groups is not None else None)
    squares = float(((those_in - own) ** 2).sum() + ((those_out - middle) ** 2).sum())
    freedom = len(scores) - means - (0 if zero_outside else 1)
    if freedom < 1:
        return 0.0, 0.0, math.inf
    gap = float(those_in.mean()) - middle
    unit = math.sqrt(1 / len(those_in) + (0.0 if zero_outside else 1 / len(those_out)))
    if squares == 0:
        return (math.inf, math.inf, math.inf) if gap > 0 else (0.0, 0.0, 0.0)
    seen = gap / math.sqrt(squares / freedom)
    low, high = (_noncentrality(seen / unit, freedom, level) * unit for level in _ends(confidence))
    return max(0.0, low), max(0.0, seen), max(0.0, high)


def _mean_of_each(scores: NDArray[np.float64], groups: NDArray[np.int64] | None) -> tuple[NDArray[np.float64], int]:
    """For each score (m,) the mean of its group, of all where there are no groups; and how many groups there are."""
    if groups is None:
        return np.full(len(scores), scores.mean()), 1
    found, place = np.unique(groups, return_inverse=True)
    return (np.bincount(place, scores) / np.bincount(place))[place], len(found)


def _ends(confidence: float) -> tuple[float, float]:
    return (1 + confidence) / 2, (1 - confidence) / 2


def _noncentrality(seen: float, freedom: int, level: float) -> float:
    """The noncentrality at which a t no larger than the one seen has a probability of ``level``.

    ``P[T <= t] = E[Phi(t S - noncentrality)]`` with S the deviation that is measured, over the true one; scipy's own
    distribution loses its digits where t is in the hundreds, as it is without noise to speak of.
    """
    measured = _measured_deviations(freedom)
    spread = math.sqrt(1 + seen * seen / (2 * freedom))

    def beyond(noncentrality: float) -> float:
        return float(ndtr(seen * measured - noncentrality).mean()) - level

    return float(brentq(beyond, seen - 40 * spread, seen + 40 * spread, xtol=1e-9 * spread))


@lru_cache(maxsize=64)
def _measured_deviations(freedom: int) -> NDArray[np.float64]:
    """Quantiles of a deviation that is measured, over the true one."""
    found: NDArray[np.float64] = np.sqrt(chi2.ppf((np.arange(_QUANTILES) + 0.5) / _QUANTILES, freedom) / freedom)
    return found


def _check(scores: NDArray[np.float64], inside: NDArray[np.bool_]) -> None:
    if not len(scores) or scores.shape != inside.shape:
        raise ValueError(
            f"expected at least one canary, with a score each, got {scores.shape} scores of {inside.shape} canaries; a "
            "run without canaries has no lower bound"
        )
