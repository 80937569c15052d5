"""NVIDIA FLARE's privacy filters on updates: the percentile filter, and sparse vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from fl_precode.defences.update_filters import Array, Draws, Record, UpdateFilter, check_positive

_MOST_PASSES: Final = 1_000
"""Passes over the numbers left, after which no further ones will pass the threshold in anybody's time."""


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"expected steps to be 1 or more, the local steps that the update is divided by, got {steps}")


@dataclass(frozen=True, kw_only=True)
class PercentileFilter(UpdateFilter):
    """NVFlare's `PercentilePrivacy`: the smallest numbers become 0, the others are cut to ``gamma``; nothing is random.

    Arrays of no dimension count among the numbers and pass as they are.

    Attributes:
        share: Percentage of the update's numbers that stays, the largest: 100 minus NVFlare's ``percentile``.
        gamma: Largest magnitude of a number of the update over ``steps``, positive.
        steps: Local steps that the update is divided by, and multiplied again; 1 where the app tells NVFlare none.
    """

    share: float = 90.0
    gamma: float = 0.01
    steps: int = 1

    def __post_init__(self) -> None:
        check_positive(gamma=self.gamma)
        _check_steps(self.steps)
        if not 0 <= self.share <= 100:
            raise ValueError(f"expected a share from 0 to 100, the percentage that stays, got {self.share:g}")

    def filtered(self, received: Record, sent: Record, draws: Draws) -> dict[str, Array]:
        """See `UpdateFilter`."""
        del draws
        per_step = _per_step(received, sent, self.steps)
        sizes = np.concatenate([np.abs(value).ravel() for value in per_step.values()]) if per_step else np.empty(0)
        if not sizes.size:
            return dict(sent)
        cutoff = np.percentile(sizes, 100 - self.share)
        left = {
            name: np.clip(np.where(np.abs(value) < cutoff, 0, value), -self.gamma, self.gamma)
            for name, value in per_step.items()
            if value.ndim
        }
        return _reply(received, sent, left, self.steps)


@dataclass(frozen=True, kw_only=True)
class SvtFilter(UpdateFilter):
    """NVFlare's `SVTPrivacy`: a noisy threshold accepts numbers, some of which get noise; the others become 0.

    Of the accepted numbers as many as are to be sent are drawn, **with replacement**; those that are not drawn are sent
    as they are, without noise and unclipped. What the stated epsilon is worth says `fl_precode.privacy`.

    Attributes:
        fraction: Fraction of the update's numbers that is to be sent with noise; above 0 and at most 1.
        epsilon: Epsilon of the noise on the threshold, positive.
        noise_var: Variance of the noise on what is sent, whose scale is ``2 gamma / noise_var``; positive.
        gamma: Largest magnitude that is compared, and sent with noise, of the update over ``steps``; positive.
        tau: Threshold, of 0 or more.
        steps: Local steps that the update is divided by, and multiplied again; 1 where the app tells NVFlare none.
    """

    fraction: float = 0.1
    epsilon: float = 0.1
    noise_var: float = 0.1
    gamma: float = 1e-5
    tau: float = 1e-6
    steps: int = 1

    def __post_init__(self) -> None:
        check_positive(epsilon=self.epsilon, noise_var=self.noise_var, gamma=self.gamma)
        _check_steps(self.steps)
        if not 0 < self.fraction <= 1:
            raise ValueError(
                f"expected a fraction above 0 and at most 1, got {self.fraction:g}: an update has no more numbers to "
                "send than it has"
            )
        if not 0 <= self.tau < math.inf:
            raise ValueError(f"expected a finite threshold tau of 0 or more, got {self.tau:g}")

    def sent_with_noise(self, size: int) -> int:
        """Draws among the accepted of an update with ``size`` numbers; at least one, however small the update is."""
        return math.ceil(self.fraction * size)

    def filtered(self, received: Record, sent: Record, draws: Draws) -> dict[str, Array]:
        """See `UpdateFilter`."""
        per_step = dict(sorted(_per_step(received, sent, self.steps).items()))
        flat = np.concatenate([value.ravel() for value in per_step.values()]) if per_step else np.empty(0)
        if not flat.size:
            return dict(sent)
        left = self._sparse(flat, draws)
        ends = np.cumsum([value.size for value in per_step.values()])[:-1]
        pieces = zip(per_step.items(), np.split(left, ends), strict=True)
        return _reply(received, sent, {name: piece.reshape(value.shape) for (name, value), piece in pieces}, self.steps)

    def _sparse(self, flat: Array, draws: Draws) -> Array:
        """The numbers (size,) that are left: noisy, as they were, or 0."""
        count = self.sent_with_noise(len(flat))
        accepted = self._accepted(np.minimum(np.abs(flat), self.gamma), count, draws)
        left = np.zeros_like(flat)
        left[accepted] = flat[accepted]
        drawn = draws.choice(accepted, count)
        noise = draws.laplace(0.0, 2 * self.gamma / self.noise_var, (count,))
        left[drawn] = np.clip(flat[drawn] + noise, -self.gamma, self.gamma)
        return left

    def _accepted(self, sizes: Array, count: int, draws: Draws) -> Array:
        """Places of the numbers above the noisy threshold, of the first pass before the second: ``count`` at least."""
        threshold = self.tau + draws.laplace(0.0, 2 * self.gamma / self.epsilon, ())
        scale = 4 * self.gamma * count / (self.epsilon * (2 * count) ** (2 / 3))
        accepted: list[Array] = []
        left = np.arange(len(sizes))
        for _ in range(_MOST_PASSES):
            above = sizes[left] + draws.laplace(0.0, scale, (len(left),)) >= threshold
            accepted.append(left[above])
            left = left[~above]
            if sum(map(len, accepted)) >= count:
                return np.concatenate(accepted)
        raise ValueError(
            f"after {_MOST_PASSES:,} passes only {sum(map(len, accepted))} of {count} numbers are above the threshold "
            f"tau={self.tau:g}, whose noise has scale {scale:.3g}: NVFlare's filter would not end. Lower tau"
        )


def _per_step(received: Record, sent: Record, steps: int) -> dict[str, Array]:
    return {name: np.asarray(np.subtract(value, received[name]) / steps) for name, value in sent.items()}


def _reply(received: Record, sent: Record, per_step: Record, steps: int) -> dict[str, Array]:
    """The reply whose update is ``per_step`` times ``steps``; arrays that are not in it stay as they would be sent."""
    return {
        name: np.asarray(received[name] + (per_step[name] * steps).astype(value.dtype)) if name in per_step else value
        for name, value in sent.items()
    }
