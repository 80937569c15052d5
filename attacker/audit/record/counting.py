"""Rule by which an image counts as reconstructed: beyond a similarity, and beyond the best guess without its update."""

from __future__ import annotations

from typing import Final, Protocol

GAIN: Final = 0.25
"""Share of what the best guess leaves open (1 less its SSIM) that a reconstruction must close beyond that guess."""

RULE: Final = "beyond the best guess without the update"
"""What has to be said beside the threshold, for people."""

NEAR: Final = 0.1
"""SSIM below what counts, within which an image that does not count is named as a near miss."""


class Compared(Protocol):
    """What an attack made of one image, compared with the truth: a row of a record, or of an experiment."""

    @property
    def outcome(self) -> str:
        """``not_applicable`` where the attack does not fit."""

    @property
    def ssim(self) -> float | None:
        """Against the truth; None where there is nothing to compare."""

    @property
    def baseline_ssim(self) -> float | None:
        """SSIM of the mean image; None where the truth is not known."""

    @property
    def guess_ssim(self) -> float | None:
        """SSIM of the best guess; None in older records."""


def needed(guess: float | None, threshold: float) -> float:
    """SSIM from which an image counts as reconstructed.

    Args:
        guess: SSIM of the best guess without the update; None where there is none.
        threshold: SSIM that is needed whatever one can guess.

    >>> needed(0.2, 0.6), round(needed(0.8, 0.6), 3), needed(1.0, 0.6)
    (0.6, 0.85, 1.0)
    """
    return threshold if guess is None else max(threshold, guess + GAIN * (1.0 - guess))


def comparable(row: Compared) -> bool:
    """Whether this image could be compared with the truth, by an attack that fits it."""
    return row.outcome != "not_applicable" and row.baseline_ssim is not None


def best_guess(row: Compared) -> float | None:
    """SSIM of the best guess without the update; older records know the mean training image only."""
    return row.guess_ssim if row.guess_ssim is not None else row.baseline_ssim


def counts(row: Compared, threshold: float) -> bool:
    """Whether this image was reconstructed; never where it could not be compared with the truth."""
    if not comparable(row) or row.ssim is None:
        return False
    return beats(row.ssim, best_guess(row), threshold)


def beats(ssim: float, guess: float | None, threshold: float) -> bool:
    """Whether a similarity reaches what is needed, and is more than the guess's: a guess may be the image itself."""
    return ssim >= needed(guess, threshold) and (guess is None or ssim > guess)


def strength(successes: int | None, images: int, ssim: float | None) -> tuple[int, int, float]:
    """What attacks are ordered by, the larger the stronger: 58 of 64 images go before 2 of 2.

    Args:
        successes: Images that were reconstructed; None where that is not known.
        images: Tried.
        ssim: Mean over these; None where there is none.

    >>> max([(2, 2, 0.9), (58, 64, 0.8), (58, 60, 0.9)], key=lambda one: strength(*one))
    (58, 64, 0.8)
    """
    return successes or 0, images, ssim or 0.0


def near_miss(row: Compared, threshold: float) -> bool:
    """Whether this image falls short of what counts by no more than `NEAR`, and is beyond every guess."""
    if not comparable(row) or row.ssim is None or counts(row, threshold):
        return False
    guess = best_guess(row)
    return row.ssim >= needed(guess, threshold) - NEAR and (guess is None or row.ssim > guess + NEAR)
