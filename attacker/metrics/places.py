"""The place of a true image among candidates, and what chance makes of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

CANDIDATES: Final = 1_000
"""Other images that each true one is told from, unless the auditor says otherwise."""

LEVEL: Final = 0.001
"""Probability by chance below which an image that is first is identified: it takes 1,001 candidates or more."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the true image stands among its candidates by their distance from a reconstruction.

    Candidates that are equally near stand in an order by lot: what counts below is what that gives in the mean, so
    that a picture that says nothing is first as often as chance has it, whatever the data set repeats.

    Attributes:
        closer: Other candidates that are nearer.
        tied: Others that are as near.
        others: All other candidates.
    """

    closer: int
    tied: int
    others: int

    @property
    def rank(self) -> float:
        """From 1; the mean of the places that it shares.

        >>> Place(closer=0, tied=1, others=9).rank
        1.5
        """
        return 1 + self.closer + self.tied / 2

    def within(self, places: int) -> float:
        """How likely the true image is among the first so many.

        >>> [Place(closer=3, tied=3, others=9).within(places) for places in (1, 5, 10)]
        [0.0, 0.5, 1.0]
        """
        return min(1.0, max(0.0, (places - self.closer) / (self.tied + 1)))

    @property
    def chance(self) -> float:
        """Probability of such a place or a better one for a picture that says nothing; ties count against it.

        >>> Place(closer=0, tied=0, others=999).chance
        0.001
        """
        return (self.closer + self.tied + 1) / (self.others + 1)

    @property
    def alone(self) -> bool:
        """Whether it is first, and no other candidate as near."""
        return self.closer == self.tied == 0 < self.others


def chance_of_first(first: int, updates: Sequence[tuple[int, int]], candidates: int) -> float:
    """Probability, at most, that so many true images or more are first although no picture says anything about them.

    The images of an update are put in the order that fits the truth best, so that each picture had several images to be
    like; and several images may be compared with the same candidates by equal pictures. The bound allows for the worst
    of both: it sums over all ways of pairing ``first`` images with pictures of their updates, each of which has a
    probability of ``first! / candidates ** first`` at most, as when all pictures are one and all candidates the same.

    Args:
        first: Images that are first.
        updates: Of each update how many different images were compared, and how many pictures there were.
        candidates: The true image among them; the fewest where they differ.

    >>> round(chance_of_first(1, [(1, 1)], 1001), 6), chance_of_first(0, [(1, 1)], 1001)
    (0.000999, 1.0)
    >>> [float(f"{chance_of_first(first, [(8, 8)], 1001):.1e}") for first in (1, 2, 3, 8)]
    [0.064, 0.0031, 0.00011, 1.6e-15]
    """
    if first < 1:
        return 1.0
    ways = np.ones(1)
    for images, pictures in updates:
        more = np.array([_pairings(count, images, pictures, candidates) for count in range(min(first, images) + 1)])
        ways = np.convolve(ways, more)[: first + 1]
    if len(ways) <= first or ways[first] == 0:  # below what a float can hold
        return 0.0
    return min(1.0, math.exp(min(0.0, math.log(ways[first]) + math.lgamma(first + 1))))


def _pairings(count: int, images: int, pictures: int, candidates: int) -> float:
    """Ways of pairing so many of an update's images with its pictures, times the chance that all of these are first."""
    if count > pictures:
        return 0.0
    ways = math.comb(images, count) * math.perm(pictures, count)
    return math.exp(math.log(ways) - count * math.log(candidates))
