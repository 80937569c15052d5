"""Spearman's rank correlation with an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.stats import spearmanr

_NORMAL = 1.959964


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
    z, half = math.atanh(rho), _NORMAL * math.sqrt((1 + rho * rho / 2) / (len(first) - 3))
    return rho, (math.tanh(z - half), math.tanh(z + half))
