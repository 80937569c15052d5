"""Privacy that composed mechanisms spend, by Google's dp-accounting (optional: ``pip install 'fl-precode[dp]'``).

Gaussian releases of full batches have an exact form (analytic Gaussian mechanism, Balle and Wang, ICML 2018); sampled
ones are composed as privacy loss distributions. The classical formula is proved for epsilon up to 1 and is used by
nobody here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any, Final

ACCOUNTANT: Final = "dp-accounting"
"""The package that the figures come from."""

_FINEST: Final = 1e-4
"""Grid of privacy losses that dp-accounting itself proposes."""

_GRID: Final = 1e-4
"""Grid of privacy losses as a share of one release's epsilon, where that is large."""

_LARGEST_PURE: Final = 500.0
"""Epsilon of one release above which exp(epsilon) is no number; composition gains nothing there."""


class GaussianReleases:
    """Gaussian noise on several releases, composed: the delta at which each epsilon holds, and the reverse.

    Args:
        noise_multiplier: Standard deviation of Gaussian noise over the L2 sensitivity, positive.
        releases: How often, 1 or more.
        sampling: Chance of the protected unit to take part in a release (Poisson sampling, kept secret), in (0, 1].

    Raises:
        ValueError: If a value is out of range.
        ModuleNotFoundError: If dp-accounting is not installed.
    """

    def __init__(self, *, noise_multiplier: float, releases: int = 1, sampling: float = 1.0) -> None:
        if not (0 < noise_multiplier < math.inf and releases >= 1 and 0 < sampling <= 1):
            raise ValueError(
                "expected a positive, finite noise_multiplier, 1 release or more and 0 < sampling <= 1, got "
                f"{noise_multiplier:g}, {releases} and {sampling:g}"
            )
        self._gaussian: Any = _load("dp_accounting.gaussian_mechanism")
        self._losses: Any = None
        # T releases of noise z are one of noise z / sqrt(T): Gaussian differential privacy (Dong, Roth, Su 2022).
        self._composed = noise_multiplier / math.sqrt(releases)
        if sampling < 1:
            one = max(1.0, float(self._gaussian.get_epsilon_gaussian(noise_multiplier, 1e-10)))
            self._losses = _sampled(noise_multiplier, releases, sampling, max(_FINEST, _GRID * one))

    @property
    def counts_sampling(self) -> bool:
        """Whether sampling is in the figures; without it they are those of taking part in every release."""
        return self._losses is not None

    def epsilon(self, delta: float) -> float:
        """The least epsilon that holds with this delta, above 0 and below 1; not below the true one."""
        if not 0 < delta < 1:
            raise ValueError(f"expected delta above 0 and below 1, got {delta:g}: Gaussian noise reaches no other")
        full = float(self._gaussian.get_epsilon_gaussian(self._composed, delta))
        if self._losses is None:
            return full
        sampled = float(self._losses.get_epsilon_for_delta(delta))
        return min(full, sampled)  # the grid rounds up: where it is too coarse, what holds without sampling is less

    def delta(self, epsilon: float) -> float:
        """The least delta at which this epsilon, of 0 or more, holds; not below the true one."""
        if self._losses is not None:
            return float(self._losses.get_delta_for_epsilon(epsilon))
        return math.exp(min(0.0, float(self._gaussian._get_log_delta(self._composed, epsilon))))


def composed_pure(pieces: Sequence[tuple[float, int]], *, delta: float) -> float:
    """Epsilon of releases that are each (epsilon, 0)-differentially private; with delta 0 their sum.

    Optimal composition holds whatever the mechanisms are, Laplace noise on vectors among them.

    Args:
        pieces: The epsilon of each kind of release, and how often there is one.
        delta: At which the figure holds, 0 or more.

    Raises:
        ModuleNotFoundError: If dp-accounting is needed and not installed.
    """
    total = sum(epsilon * times for epsilon, times in pieces)
    if delta == 0 or max(epsilon for epsilon, _ in pieces) > _LARGEST_PURE or sum(times for _, times in pieces) == 1:
        return total
    # Losses are plus or minus epsilon: on a grid of the smallest that piece is exact, and others are rounded up.
    parameters, grid = _load("dp_accounting.pld.common"), min(epsilon for epsilon, _ in pieces)
    composed: Any = None
    for epsilon, times in pieces:
        one = _losses().from_privacy_parameters(
            parameters.DifferentialPrivacyParameters(epsilon, 0.0), value_discretization_interval=grid
        )
        several = one.self_compose(times) if times > 1 else one
        composed = several if composed is None else composed.compose(several)
    return min(total, float(composed.get_epsilon_for_delta(delta)))


def _sampled(noise_multiplier: float, releases: int, sampling: float, grid: float) -> Any:
    """Losses of sampled Gaussian releases; None where noise is so little that they are no numbers."""
    try:
        one = _losses().from_gaussian_mechanism(
            noise_multiplier, sampling_prob=sampling, value_discretization_interval=grid
        )
        return one.self_compose(releases) if releases > 1 else one
    except OverflowError:
        return None


def _losses() -> ModuleType:
    return _load("dp_accounting.pld.privacy_loss_distribution")


@cache
def _load(module: str) -> ModuleType:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        raise ModuleNotFoundError(f"epsilon needs dp-accounting ({error}); pip install 'fl-precode[dp]'") from error
