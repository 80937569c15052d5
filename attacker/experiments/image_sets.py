"""The images of experiments, loaded once in a process, and what they can be guessed to be."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

from attacker.audit.execution.machine import versions
from attacker.audit.truth.best_guess import Guesses
from attacker.audit.truth.federation import TrainingImages
from fl_precode.data import ImageData, load_data

GUESSES = "the best guess"
"""Baseline that a reconstructed image has to exceed; results that were compared with less are made again."""


@lru_cache(maxsize=4)
def images(data: str, data_root: str) -> ImageData:
    """An image set, loaded once in a process; see `load_data`."""
    return load_data(data, data_root)


@lru_cache(maxsize=4)
def guesses_of(data: ImageData) -> Guesses:
    """What images can be guessed to be by somebody who has other training images, and no update."""
    return Guesses(TrainingImages(data.train))


@lru_cache(maxsize=16)
def image_digest(data: str, data_root: str) -> str:
    """Digest of all images and labels, so that other images under an old name are another experiment."""
    loaded = images(data, data_root)
    digest = hashlib.sha256(repr(loaded.inputs).encode())
    for part in (loaded.train, loaded.test):
        digest.update(part.images.contiguous().numpy().tobytes())
        digest.update(part.labels.numpy().tobytes())
    return digest.hexdigest()[:16]


def made_from(data: str, data_root: str, seed: int) -> dict[str, Any]:
    """What the result of every piece depends on: the seed, the images, and the versions of what computes."""
    known = {name: version for name, version in versions().items() if name in ("fl-precode", "torch")}
    return {"seed": seed, "images": image_digest(data, data_root), **known}
