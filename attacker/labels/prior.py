"""Guess of an update's labels without the update, from the frequencies of the classes alone."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence


def likeliest_counts(frequencies: Sequence[float], images: int) -> list[int]:
    """The most probable numbers of images of each class, of a batch that is drawn by these frequencies.

    The probability of a batch is a product over its classes, and each further image of a class adds less to it than
    the one before: so dealing out the images one by one, each where it adds most, finds the most probable batch.

    Args:
        frequencies: Frequencies of each class; not negative, not all zero.
        images: In the batch, 0 or more.

    >>> likeliest_counts([0.7, 0.3], 4), likeliest_counts([0.25] * 4, 2)
    ([3, 1], [1, 1, 0, 0])
    """
    counts = [0] * len(frequencies)
    gains = [(-share, label) for label, share in enumerate(frequencies) if share > 0]
    heapq.heapify(gains)
    for _ in range(images):
        _, label = gains[0]
        counts[label] += 1
        heapq.heapreplace(gains, (-frequencies[label] / (counts[label] + 1), label))
    return counts


def chance_of_counts(counts: Sequence[int], frequencies: Sequence[float]) -> float:
    """Probability that a batch drawn by these frequencies has exactly these numbers of images (multinomial).

    Args:
        counts: Images of each class.
        frequencies: Frequencies of each class; they sum to 1.

    >>> round(chance_of_counts([1, 1], [0.5, 0.5]), 3), chance_of_counts([0, 1], [1.0, 0.0])
    (0.5, 0.0)
    """
    logarithm = math.lgamma(sum(counts) + 1)
    for number, share in zip(counts, frequencies, strict=True):
        if number and not share:
            return 0.0
        logarithm += (number * math.log(share) if number else 0.0) - math.lgamma(number + 1)
    return min(1.0, math.exp(logarithm))


def in_common(first: Sequence[int], second: Sequence[int]) -> int:
    """Images whose class is right when labels with the first numbers are said of a batch with the second.

    >>> in_common([3, 1, 0], [2, 0, 2])
    2
    """
    return sum(map(min, first, second))
