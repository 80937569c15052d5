"""When an image counts as come back: beyond a similarity, and beyond the best guess without its update."""

from __future__ import annotations

from typing import Final

from attacker.audit.record import ImageResult

GAIN: Final = 0.25
"""Share of what the best guess leaves open (1 less its SSIM) that a reconstruction must close beyond that guess."""

NEAR: Final = 0.1
"""SSIM below what counts, within which an image that does not count is named as a near miss."""


def needed(guess: float | None, threshold: float) -> float:
    """SSIM from which an image counts as come back.

    Args:
        guess: SSIM of the best guess without the update; None where there is none.
        threshold: SSIM that is needed whatever one can guess.

    >>> needed(0.2, 0.6), round(needed(0.8, 0.6), 3), needed(1.0, 0.6)
    (0.6, 0.85, 1.0)
    """
    return threshold if guess is None else max(threshold, guess + GAIN * (1.0 - guess))


def comparable(row: ImageResult) -> bool:
    """Whether this image could be compared with the truth, by an attack that fits it."""
    return row.outcome != "not_applicable" and row.baseline_ssim is not None


def best_guess(row: ImageResult) -> float | None:
    """SSIM of the best guess without the update; older records know the mean training image only."""
    return row.guess_ssim if row.guess_ssim is not None else row.baseline_ssim


def counts(row: ImageResult, threshold: float) -> bool:
    """Whether this image came back; never where it could not be compared with the truth."""
    if not comparable(row) or row.ssim is None:
        return False
    return row.ssim >= needed(best_guess(row), threshold) and row.ssim > (best_guess(row) or -1.0)


def near_miss(row: ImageResult, threshold: float) -> bool:
    """Whether this image falls short of what counts by no more than `NEAR`, and is beyond every guess."""
    if not comparable(row) or row.ssim is None or counts(row, threshold):
        return False
    guess = best_guess(row)
    return row.ssim >= needed(guess, threshold) - NEAR and (guess is None or row.ssim > guess + NEAR)
