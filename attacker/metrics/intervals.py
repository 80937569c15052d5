"""Intervals and tests: of success rates, of the difference of two, and of a rank correlation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from scipy.stats import beta, binomtest, spearmanr


def exact_interval(share: float, trials: float, *, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share (Clopper, Pearson 1934), also of one seen in fewer independent trials than cases.

    Its chance to miss the true share is at most what the confidence leaves, whatever the share and however few the
    trials. With trials that are no whole number it is that of Korn and Graubard (1998), for cases in clusters.

    Args:
        share: Share of all cases, in [0, 1].
        trials: Independent ones among them, more than 0.
        confidence: In (0, 1).

    Raises:
        ValueError: If the share, the trials or the confidence are out of their range.

    >>> low, high = exact_interval(0.8, 10)
    >>> round(low, 4), round(high, 4)
    (0.4439, 0.9748)
    """
    _check_share(share, trials, confidence)
    seen, tail = min(share * trials, trials), (1 - confidence) / 2
    low = 0.0 if share == 0 else float(beta.ppf(tail, seen, trials - seen + 1))
    high = 1.0 if share == 1 else float(beta.ppf(1 - tail, seen + 1, trials - seen))
    return low, high


def chance_of_so_many(successes: int, chances: Sequence[float]) -> float:
    """Probability of this many successes or more in independent trials with chances of their own (Poisson binomial).

    Args:
        successes: Seen.
        chances: Chances of each trial, in [0, 1].

    >>> chance_of_so_many(2, [0.5, 0.5]), chance_of_so_many(0, [0.1])
    (0.25, 1.0)
    """
    counts = [1.0]
    for chance in chances:
        missed, hit = [value * (1 - chance) for value in counts], [value * chance for value in counts]
        counts = [a + b for a, b in zip([*missed, 0.0], [0.0, *hit], strict=True)]
    return min(1.0, math.fsum(counts[successes:]))


def wilson_of_share(share: float, trials: float, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (1927) of a share that was seen in fewer independent trials than cases.

    Where both are whole numbers it is `attacker.metrics.similarity.wilson_interval`.

    Args:
        share: Share of all cases, in [0, 1].
        trials: Independent ones among them, more than 0.
        confidence: In (0, 1).

    Raises:
        ValueError: If the share, the trials or the confidence are out of their range.

    >>> low, high = wilson_of_share(0.8, 10)
    >>> round(low, 4), round(high, 4)
    (0.4902, 0.9433)
    """
    _check_share(share, trials, confidence)
    square = NormalDist().inv_cdf((1 + confidence) / 2) ** 2 / trials
    middle = (share + square / 2) / (1 + square)
    half = math.sqrt(square * share * (1 - share) + square**2 / 4) / (1 + square)
    return (0.0 if share == 0 else max(0.0, middle - half)), (1.0 if share == 1 else min(1.0, middle + half))


def difference_interval(
    successes: tuple[float, float], victims: tuple[float, float], *, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of ``p1 - p2`` for independent victims: Newcombe's hybrid score interval (1998a, method 10).

    Args:
        successes: Successes of the first and the second.
        victims: Victims of the first and the second; where victims depend on each other, both are those that do not.
        confidence: In (0, 1).

    Raises:
        ValueError: As for `wilson_of_share`.

    >>> low, high = difference_interval((56, 48), (70, 80))
    >>> round(low, 4), round(high, 4)
    (0.0524, 0.3339)
    """
    return _squared_and_added(successes, victims, 0.0, confidence)


def paired_interval(
    both: float, first_only: float, second_only: float, neither: float, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of ``p1 - p2`` where both were measured on the same victims: Newcombe (1998b, method 10).

    Args:
        both: Victims that were reconstructed in both.
        first_only: In the first alone.
        second_only: In the second alone.
        neither: In none.
        confidence: In (0, 1).

    Raises:
        ValueError: If there are no victims.

    >>> low, high = paired_interval(20, 12, 2, 16)
    >>> round(low, 4), round(high, 4)
    (0.0562, 0.3292)
    """
    victims = both + first_only + second_only + neither
    rows = (both + first_only, second_only + neither, both + second_only, first_only + neither)
    product = math.prod(rows)
    correlation = 0.0
    if product > 0:
        cross = both * neither - first_only * second_only
        corrected = max(cross - victims / 2, 0.0) if cross > 0 else cross  # Newcombe's correction towards none
        correlation = corrected / math.sqrt(product)
    return _squared_and_added((rows[0], rows[2]), (victims, victims), correlation, confidence)


def mcnemar(first_only: int, second_only: int) -> float:
    """Probability of so uneven a split, or a more uneven one, if neither is better: McNemar's exact test, two-sided.

    >>> mcnemar(12, 2).__round__(4), mcnemar(0, 0)
    (0.0129, 1.0)
    """
    changed = first_only + second_only
    return float(binomtest(first_only, changed, 0.5).pvalue) if changed else 1.0


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> tuple[float, tuple[float, float]] | None:
    """Spearman's rho and its 95 % interval (Bonett, Wright, Psychometrika 2000); None for fewer than 4 pairs.

    None as well where one side does not vary. The interval is that of Fisher's z with variance
    ``(1 + rho²/2) / (n - 3)``.

    >>> rank_correlation([1, 2, 3, 4, 5], [1, 2, 3, 5, 4])[0].__round__(2)
    0.9
    """
    if len(first) < 4 or len(set(first)) == 1 or len(set(second)) == 1:
        return None
    rho = float(spearmanr(first, second).statistic)
    if abs(rho) == 1:  # z is infinite
        return rho, (rho, rho)
    z, half = math.atanh(rho), NormalDist().inv_cdf(0.975) * math.sqrt((1 + rho * rho / 2) / (len(first) - 3))
    return rho, (math.tanh(z - half), math.tanh(z + half))


def _squared_and_added(
    successes: tuple[float, float], victims: tuple[float, float], correlation: float, confidence: float
) -> tuple[float, float]:
    if min(victims) <= 0:
        raise ValueError(f"expected 1 or more victims on both sides, got {victims[0]:g} and {victims[1]:g}")
    # Shares of fewer trials than victims are no whole numbers of them, and rounding may take them just beyond 1.
    first, second = (min(1.0, s / n) if s <= n * (1 + 1e-9) else s / n for s, n in zip(successes, victims, strict=True))
    (low1, high1), (low2, high2) = (
        wilson_of_share(share, n, confidence=confidence) for share, n in zip((first, second), victims, strict=True)
    )

    def width(margin: float, other: float) -> float:
        return math.sqrt(max(margin**2 - 2 * correlation * margin * other + other**2, 0.0))

    difference = first - second
    return (
        max(-1.0, difference - width(first - low1, high2 - second)),
        min(1.0, difference + width(high1 - first, second - low2)),
    )


def _check_share(share: float, trials: float, confidence: float) -> None:
    if not (0 <= share <= 1 and trials > 0):
        raise ValueError(f"expected a share in [0, 1] of more than 0 trials, got {share} of {trials}")
    if not 0 < confidence < 1:
        raise ValueError(f"expected a confidence between 0 and 1, such as 0.95, got {confidence}")
