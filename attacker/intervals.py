"""Intervals and tests for the difference of two success rates."""

from __future__ import annotations

import math

from scipy.stats import binomtest

from attacker.metrics import wilson_interval


def difference_interval(
    successes: tuple[int, int], victims: tuple[int, int], *, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of ``p1 - p2`` for independent victims: Newcombe's hybrid score interval (1998a, method 10).

    Args:
        successes: Of the first and the second.
        victims: Of the first and the second.
        confidence: In (0, 1).

    Raises:
        ValueError: As for `attacker.metrics.wilson_interval`.

    >>> low, high = difference_interval((56, 48), (70, 80))
    >>> round(low, 4), round(high, 4)
    (0.0524, 0.3339)
    """
    return _squared_and_added(successes, victims, 0.0, confidence)


def paired_interval(
    both: int, first_only: int, second_only: int, neither: int, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of ``p1 - p2`` where both were measured on the same victims: Newcombe (1998b, method 10).

    Args:
        both: Victims that came back in both.
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


def _squared_and_added(
    successes: tuple[int, int], victims: tuple[int, int], correlation: float, confidence: float
) -> tuple[float, float]:
    (low1, high1), (low2, high2) = (
        wilson_interval(s, n, confidence=confidence) for s, n in zip(successes, victims, strict=True)
    )
    first, second = (s / n for s, n in zip(successes, victims, strict=True))

    def width(one: float, other: float) -> float:
        return math.sqrt(max(one**2 - 2 * correlation * one * other + other**2, 0.0))

    difference = first - second
    return (
        max(-1.0, difference - width(first - low1, high2 - second)),
        min(1.0, difference + width(high1 - first, second - low2)),
    )
