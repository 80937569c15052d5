"""Images that a reconstruction may be taken for: drawn by lot from what the evaluation knows. No attack sees them."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from attacker.audit.truth.best_guess import digest
from attacker.metrics.identification import reduced

_Known = tuple[bytes, int, Tensor]

CandidateImages = Iterable[tuple[Tensor, Tensor]]
"""Some at a time: images (n, channels, height, width) in [0, 1], and their labels (n,)."""

_BYTES: Final = 16


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Images drawn by lot.

    Attributes:
        images: (n, channels, height, width) in [0, 1], at the size at which they are compared.
        labels: (n,) classes.
        prints: Equal for images that were equal before they were brought to that size.
    """

    images: Tensor
    labels: Tensor
    prints: tuple[bytes, ...]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.prints)

    @classmethod
    def of(cls, images: Tensor, labels: Tensor) -> Candidates:
        """Those of these images."""
        return cls(images=reduced(images), labels=labels, prints=tuple(map(digest, images)))


NO_CANDIDATES: Final = Candidates(images=torch.zeros(0, 1, 1, 1), labels=torch.zeros(0, dtype=torch.int64), prints=())


def drawn_places(labels: Tensor, label: int | None, most: int, seed: int) -> Tensor:
    """Places of images of a class, of all classes where it is None, drawn by lot up to a limit, (n,).

    Args:
        labels: (n,) of all images.
        label: The class.
        most: Images.
        seed: Other seeds, other images.
    """
    members = torch.arange(len(labels)) if label is None else (labels == label).nonzero().flatten()
    lot = hashlib.blake2b(f"candidates|{seed}|{label}".encode(), digest_size=7).digest()
    order = torch.randperm(len(members), generator=torch.Generator().manual_seed(int.from_bytes(lot)))
    return members[order[:most]]


def drawn(some: CandidateImages, labels: Collection[int | None], most: int, seed: int) -> dict[int | None, Candidates]:
    """Different images of each class up to a limit, drawn by lot, in whatever order they come.

    An image that comes again, as one does that a client uses in several rounds, is the same image.

    Args:
        some: All images, of which those of the first one's shape count.
        labels: The classes; None stands for all of them.
        most: Images of each.
        seed: Other seeds, other images.
    """
    key = hashlib.blake2b(str(seed).encode(), digest_size=_BYTES).digest()
    kept: dict[int | None, dict[bytes, _Known]] = {label: {} for label in labels}
    shape: torch.Size | None = None
    for images, classes in some:
        for image, own_class in zip(images, classes.tolist(), strict=True):
            shape = image.shape if shape is None else shape
            if image.shape != shape or kept.keys().isdisjoint({own_class, None}):
                continue
            own = digest(image)
            lot = hashlib.blake2b(own, key=key, digest_size=_BYTES).digest()
            known = own, own_class, reduced(image[None])[0]
            for label in kept.keys() & {own_class, None}:
                kept[label].setdefault(lot, known)
                if len(kept[label]) >= 2 * most:
                    kept[label] = _first(kept[label], most)
    return {label: _candidates(_first(pool, most)) for label, pool in kept.items()}


def _first(pool: dict[bytes, _Known], most: int) -> dict[bytes, _Known]:
    return {lot: pool[lot] for lot in heapq.nsmallest(most, pool)}


def _candidates(pool: dict[bytes, _Known]) -> Candidates:
    if not pool:
        return NO_CANDIDATES
    prints, labels, images = zip(*pool.values(), strict=True)
    return Candidates(images=torch.stack(images), labels=torch.tensor(labels), prints=prints)
