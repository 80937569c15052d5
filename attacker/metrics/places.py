"""The place of a true image among candidates, and what chance makes of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

CANDIDATES: Final = 1_000
"""Other images that each true one is told from, unless the auditor says otherwise."""

LEVEL: Final = 0.001
"""Probability, below which as many first images as an attack has are no chance."""

MOST_BY_CHANCE: Final = 0.05
"""Share of an attack's first images that may be expected by chance, so that each of them counts as identified."""

FEWEST: Final = 20
"""Candidates of its class, the image itself included, from which on an image can be identified."""


class Compared(NamedTuple):
    """The images of one update that were compared.

    Attributes:
        images: Different ones.
        pictures: That an attack made of them.
        candidates: Candidates of each, the image itself included; the fewest where they differ.
    """

    images: int
    pictures: int
    candidates: int


@dataclass(frozen=True, kw_only=True)
class Place:
    """Place of the true image among its candidates by their distance from a reconstruction.

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
        """Probability that the true image is among the first ones.

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


def chance_of_first(first: int, updates: Sequence[Compared]) -> float:
    """Largest probability of this many first true images, or more, if no picture says anything about them.

    The images of an update are put in the order that fits the truth best, so that each picture had several images to be
    like; and several images may be compared with the same candidates by equal pictures. The bound allows for the worst
    of both: it sums over all ways of pairing ``first`` images with pictures of their updates, each of which has a
    probability of ``first!`` over the product of their candidates at most, as when all pictures are one and all
    candidates the same.

    Args:
        first: Images that are first.
        updates: What was compared.

    >>> round(chance_of_first(1, [Compared(1, 1, 1001)]), 6), chance_of_first(0, [Compared(1, 1, 1001)])
    (0.000999, 1.0)
    >>> [float(f"{chance_of_first(first, [Compared(8, 8, 1001)]):.1e}") for first in (1, 2, 3, 8)]
    [0.064, 0.0031, 0.00011, 1.6e-15]
    """
    if first < 1:
        return 1.0
    ways = np.ones(1)
    for update in updates:
        more = np.array([_pairings(count, *update) for count in range(min(first, update.images) + 1)])
        ways = np.convolve(ways, more)[: first + 1]
    if len(ways) <= first or ways[first] == 0:  # below what a float can hold
        return 0.0
    return min(1.0, math.exp(min(0.0, math.log(ways[first]) + math.lgamma(first + 1))))


def _pairings(count: int, images: int, pictures: int, candidates: int) -> float:
    """Ways of pairing this many of an update's images with its pictures, times the chance that all are first."""
    if count > pictures:
        return 0.0
    ways = math.comb(images, count) * math.perm(pictures, count)
    return math.exp(math.log(ways) - count * math.log(candidates))


def identifies(first: int, updates: Sequence[Compared]) -> bool:
    """Whether images that are first are identified: as many are no chance, and few of them may be.

    Args:
        first: Images that are first, with no other as near.
        updates: What was compared.

    >>> identifies(1, [Compared(1, 1, 1001)]), identifies(1, [Compared(1, 1, 1000)])
    (True, False)
    >>> [identifies(first, [Compared(1, 1, 1000)] * 16) for first in (1, 2)]
    [False, True]
    >>> identifies(32, [Compared(1, 1, 20)] * 64)
    False
    """
    by_chance = sum(update.images * update.pictures / update.candidates for update in updates)
    return first > 0 and chance_of_first(first, updates) < LEVEL and by_chance <= MOST_BY_CHANCE * first
