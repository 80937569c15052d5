"""Best guess of an image without its update, and its similarity to the image. For evaluation only.

An image that a guess resembles shows nothing when it is reconstructed no better: scans of one organ, digits, plain
images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor

from attacker.metrics.similarity import SSIM_WINDOW, plain_ssim, ssim

COPY_SSIM: Final = 0.99
COPY_RMSE: Final = 0.02
"""From this SSIM on, and up to this root mean squared error, a picture is the image itself and no guess at it."""

MOST_OTHERS: Final = 64
"""Other images of its class that an image is compared with; fewer where they are large."""

MOST_OF_CLASS: Final = 512
"""Images of a class that its mean is the mean of; fewer where they are large."""

FEWEST_AVERAGED: Final = 16
"""Different images below which a mean shows each of them, and is no guess that one could make without the update."""

LEVELS: Final = 33
"""Shades between black and white, both included, that the plain images are compared in."""

_VALUES_COMPARED: Final = 1 << 21
_VALUES_AVERAGED: Final = 1 << 24
_MOST_WORK: Final = 1 << 30
"""Of comparing every image with every other: values times pairs, a few seconds."""

_IS_THE_IMAGE: Final = 1 - 1e-6


class KnownImages(Protocol):
    """Where guesses come from."""

    @property
    def mean_image(self) -> Tensor | None:
        """(channels, height, width) in [0, 1], or None where no image is known."""

    def of_class(self, label: int) -> Tensor:
        """(n, channels, height, width) in [0, 1]: different images of a class, at most `most_of_class`; n may be 0."""


class ClientImages(Protocol):
    """What somebody knows who knows the client, and nothing of its update."""

    def of_class(self, label: int) -> Tensor:
        """(n, channels, height, width) in [0, 1]: the client's images of a class beside those behind the update."""


@dataclass(frozen=True, kw_only=True)
class Guess:
    """The best guess at one image.

    Attributes:
        ssim: How like the image it is; 1 for one that is the image.
        name: Which guess it is, for people.
        image: (channels, height, width) in [0, 1].
        mean_ssim: SSIM of the mean image, of a plain one where there is none.
    """

    ssim: float
    name: str
    image: Tensor
    mean_ssim: float


def most_of_class(values: int) -> int:
    """Number of images of a class that are looked at, by the number of values of each.

    >>> most_of_class(28 * 28), most_of_class(3 * 224 * 224)
    (512, 111)
    """
    return max(1, min(MOST_OF_CLASS, _VALUES_AVERAGED // values))


def _most_compared(values: int) -> int:
    return max(4, min(MOST_OTHERS, _VALUES_COMPARED // values))


class Guesses:
    """Guesses at images, each worked out once.

    Args:
        known: The images that somebody without the update may know.
    """

    def __init__(self, known: KnownImages) -> None:
        self._known = known
        self._found: dict[tuple[bytes, int, bytes], Guess | None] = {}

    @property
    def mean_image(self) -> Tensor | None:
        """The mean image, for whoever wants to see it."""
        return self._known.mean_image

    def at(self, images: Tensor, labels: Tensor, client: ClientImages | None = None) -> list[Guess | None]:
        """The best guess at each image; None where they are too small for SSIM.

        Args:
            images: (n, channels, height, width) in [0, 1].
            labels: (n,) classes.
            client: Whose they are, where its other images are known.
        """
        own = {label: client.of_class(label) for label in set(labels.tolist())} if client is not None else {}
        return [self._at(image, int(label), own.get(int(label))) for image, label in zip(images, labels, strict=True)]

    def _at(self, image: Tensor, label: int, own: Tensor | None) -> Guess | None:
        key = digest(image), label, b"" if own is None else digest(own)
        if key not in self._found:
            self._found[key] = self._best(image, label, own) if min(image.shape[1:]) >= SSIM_WINDOW else None
        return self._found[key]

    def _best(self, image: Tensor, label: int, own: Tensor | None) -> Guess:
        flat = self._known.mean_image
        guesses = [_plain(image)]
        if flat is not None and flat.shape == image.shape:
            guesses.insert(0, (float(ssim(flat[None], image[None])), "mean image", flat))
        mean_ssim = guesses[0][0]
        guesses += _of_class(image, self._known.of_class(label))
        guesses += [] if own is None else _mean_of(image, own, "mean of the client's class")
        best, name, picture = max(guesses, key=lambda guess: guess[0])
        best = 1.0 if best >= _IS_THE_IMAGE else best
        return Guess(ssim=best, name=name, image=picture, mean_ssim=mean_ssim)


def _plain(image: Tensor) -> tuple[float, str, Tensor]:
    """The plain image that is most like it: of each channel the best of some shades, and its own mean."""
    shades = torch.linspace(0, 1, LEVELS, dtype=torch.float64).expand(len(image), LEVELS)
    means = image.double().mean(dim=(1, 2))[:, None]
    levels = torch.cat([shades, means], dim=1)
    similarity, place = plain_ssim(image[None], levels[None])[0].max(dim=1)
    colour = levels.gather(1, place[:, None])
    names = {0.0: "black image", 1.0: "white image"}
    shade = float(colour[0]) if bool((colour == colour[0]).all()) else 0.5
    name = names.get(shade, "plain image")
    return float(similarity.mean()), name, colour[:, :, None].expand_as(image).float()


def _of_class(image: Tensor, others: Tensor) -> list[tuple[float, str, Tensor]]:
    """The best of other images of its class, and their mean; copies of the image are none of them."""
    if others.shape[1:] != image.shape or not len(others):
        return []
    guesses = _mean_of(image, others, "mean of its class")
    others = others[~are_copies(others, image)]
    compared = others[: _most_compared(image.numel())]
    if len(compared):
        similarity, place = ssim(compared, image.expand_as(compared)).max(dim=0)
        guesses.append((float(similarity), "another image of its class", compared[int(place)]))
    return guesses


def _mean_of(image: Tensor, others: Tensor, name: str) -> list[tuple[float, str, Tensor]]:
    """The mean of images without copies of this one, where it shows none of them."""
    if others.shape[1:] != image.shape or not len(others):
        return []
    others = others[~are_copies(others, image)]
    if len(others) < FEWEST_AVERAGED:
        return []
    mean = others.double().mean(dim=0).float()
    return [(float(ssim(mean[None], image[None])), name, mean)]


def are_copies(images: Tensor, image: Tensor) -> Tensor:
    """Which images are the given one, exactly or all but: (n,) bool.

    Args:
        images: (n, channels, height, width) in [0, 1].
        image: (channels, height, width).
    """
    copies: Tensor = (images - image).square().mean(dim=(1, 2, 3)).sqrt() <= COPY_RMSE
    near = copies.nonzero().flatten()
    if len(near) and min(image.shape[1:]) >= SSIM_WINDOW:
        copies[near] = ssim(images[near], image.expand_as(images[near])) >= COPY_SSIM
    return copies


def first_of_each(images: Sequence[Tensor]) -> list[int]:
    """For each image the place of the first that it is a copy of; its own place where there is none before it.

    Args:
        images: (channels, height, width) in [0, 1], of any shapes.
    """
    exact: dict[bytes, int] = {}
    first = [exact.setdefault(digest(image), place) for place, image in enumerate(images)]
    different = list(exact.values())
    if sum(images[place].numel() for place in different) * len(different) > _MOST_WORK:
        return first
    leaders: dict[tuple[int, ...], list[int]] = {}
    chosen: dict[int, int] = {}
    for place in different:
        same_shape = leaders.setdefault(tuple(images[place].shape), [])
        alike = (
            are_copies(torch.stack([images[leader] for leader in same_shape]), images[place])
            if same_shape
            else torch.zeros(0)
        )
        if bool(alike.any()):
            chosen[place] = same_shape[int(alike.nonzero()[0])]
        else:
            chosen[place] = place
            same_shape.append(place)
    return [chosen[place] for place in first]


def digest(image: Tensor) -> bytes:
    """Equal for equal images."""
    content = image.detach().cpu().contiguous()
    return hashlib.blake2b(content.numpy().tobytes() + repr(tuple(content.shape)).encode(), digest_size=16).digest()
