"""Identification of images: distance of a reconstruction to candidates, and the place of the true image among them.

Images are (n, channels, height, width) on the [0, 1] scale. Nothing here knows where candidates come from.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from attacker.metrics.places import Place

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
    """Largest shift of a reconstruction in pixels, by the length of its shorter side.

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
        candidates: Result of `crops`.
    """
    shift = shift_of(min(images.shape[-2:]))
    moves = [(down, right) for down in range(-shift, shift + 1) for right in range(-shift, shift + 1)]
    best = torch.zeros(len(images), len(candidates))
    for number, image in enumerate(images):
        # All shifts at once: the candidates, which are many, are read from memory a single time.
        shifted = torch.cat([_window(image[None], down, right) for down, right in moves])
        best[number] = (_directions(shifted) @ candidates.T).amax(dim=0)
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


def places_among(images: Tensor, truth: Tensor, others: Tensor) -> list[Place]:
    """The place of each true image among other images, by the pixels of its reconstruction after a small shift.

    Args:
        images: (n, channels, height, width) in [0, 1], finite, in the order of the truth.
        truth: The same shape.
        others: (m, channels, height, width): candidates that are none of these images.

    Raises:
        ValueError: If the shapes do not fit, or an image is not finite.

    >>> truth = torch.eye(8).reshape(1, 1, 8, 8)
    >>> (place,) = places_among(0.5 + 0.1 * truth, truth, torch.eye(64).reshape(64, 1, 8, 8))
    >>> place.rank, place.chance < 0.02
    (1.0, True)
    """
    if images.dim() != 4 or images.shape != truth.shape or others.shape[1:] != images.shape[1:]:
        raise ValueError(
            "expected images, truth and others (n, channels, height, width) of one form, and as many images as true "
            f"ones; got {tuple(images.shape)}, {tuple(truth.shape)} and {tuple(others.shape)}"
        )
    if not bool(images.isfinite().all()):
        raise ValueError("expected finite images, got NaN or infinity; leave diverged reconstructions out")
    pictures, known = reduced(images), crops(reduced(others))
    own = [
        pixel_distances(picture[None], crops(image[None]))
        for picture, image in zip(pictures, reduced(truth), strict=True)
    ]
    return [place_of(float(near), far) for near, far in zip(own, pixel_distances(pictures, known), strict=True)]
