"""Whose image a reconstruction shows: the place of the true image among candidates, and what chance would give.

Images are (n, channels, height, width) on the [0, 1] scale. Nothing here knows where candidates come from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

MOST_SIDE: Final = 64
"""Pixels of the longer side that images are compared at; larger ones are averaged down to it."""

MOST_SHIFT: Final = 2
"""Pixels in each direction that a reconstruction may be shifted by; one where the images are below 16 pixels."""

_TIE: Final = 1e-5
"""Difference of distances up to which two candidates are equally near: rounding of single precision leaves less."""

_LEAST_SPREAD: Final = 1e-4
"""Deviation of pixels below which a picture is plain, and like no candidate more than another."""


def reduced(images: Tensor) -> Tensor:
    """The images at the size at which they are compared, in single precision.

    >>> reduced(torch.zeros(2, 3, 224, 112)).shape
    torch.Size([2, 3, 64, 32])
    """
    height, width = images.shape[-2:]
    longer = max(height, width)
    if longer <= MOST_SIDE:
        return images.detach().float()
    size = [max(1, round(side * MOST_SIDE / longer)) for side in (height, width)]
    return interpolate(images.detach().float(), size=size, mode="area")


def shift_of(side: int) -> int:
    """By how many pixels a reconstruction may be shifted, where the shorter side has so many.

    >>> [shift_of(side) for side in (4, 8, 16, 64)]
    [0, 1, 2, 2]
    """
    return min(MOST_SHIFT, side // 8)


def crops(candidates: Tensor) -> Tensor:
    """Candidates as rows that `pixel_distances` compares: without the border, mean removed, of length 1.

    Args:
        candidates: (n, channels, height, width), as `reduced` gives them.

    Returns:
        (n, values); zero for plain images.
    """
    return _directions(_window(candidates, 0, 0))


def pixel_distances(images: Tensor, candidates: Tensor) -> Tensor:
    """One less the correlation of pixels, after the best small shift: (images, candidates), from 0 to 2.

    The correlation is blind to brightness and contrast, which searches often miss while a person still knows the image.

    Args:
        images: (n, channels, height, width), as `reduced` gives them, finite.
        candidates: Of `crops`.
    """
    shift = shift_of(min(images.shape[-2:]))
    best = torch.full((len(images), len(candidates)), -1.0)
    for down in range(-shift, shift + 1):
        for right in range(-shift, shift + 1):
            best = torch.maximum(best, _directions(_window(images, down, right)) @ candidates.T)
    return 1 - best


def _window(images: Tensor, down: int, right: int) -> Tensor:
    """What is left of images inside the border, shifted."""
    height, width = images.shape[-2:]
    border = shift_of(min(height, width))
    return images[..., border + down : height - border + down, border + right : width - border + right]


def _directions(images: Tensor) -> Tensor:
    flat = images.flatten(1)
    flat = flat - flat.mean(dim=1, keepdim=True)
    length = flat.norm(dim=1, keepdim=True)
    plain = length <= _LEAST_SPREAD * math.sqrt(flat.shape[1])
    return torch.where(plain, torch.zeros_like(flat), flat / length.clamp(min=torch.finfo(flat.dtype).tiny))


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


def place_of(own: float, others: Tensor, copies: int = 0) -> Place:
    """The place of the true image.

    Args:
        own: Its distance from the reconstruction.
        others: (n,) distances of the other candidates.
        copies: Candidates beside these that are equal to it.
    """
    difference = others - own
    closer = int((difference < -_TIE).sum())
    tied = int((difference.abs() <= _TIE).sum())
    return Place(closer=closer, tied=tied + copies, others=len(others) + copies)


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
