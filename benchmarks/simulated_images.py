"""Small real images for simulated audits: from installed packages, and from ../shared/data where that is there."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np

from fl_precode.data import load_data

SHARED = Path(__file__).resolve().parents[1] / "../shared/data"
MOST = 240
"""Images of a set; the fewer, the faster every guess without an update is compared."""

Images = tuple[np.ndarray, np.ndarray]
"""uint8 images (n, height, width) or (n, height, width, 3), and labels (n,) from 0 on."""


def smaller(images: np.ndarray, factor: int) -> np.ndarray:
    """The mean of every ``factor`` x ``factor`` pixels; what is left over at the lower right edge is cut off."""
    height, width = (side // factor * factor for side in images.shape[1:3])
    cut = images[:, :height, :width].astype(np.float32)
    shape = (len(cut), height // factor, factor, width // factor, factor, *cut.shape[3:])
    return np.round(cut.reshape(shape).mean(axis=(2, 4))).astype(np.uint8)


def _embedded(name: str, factor: int) -> Callable[[], Images]:
    def load() -> Images:
        train = load_data(name).train
        images = train.images.permute(0, 2, 3, 1).numpy()
        return smaller(images[..., 0] if images.shape[3] == 1 else images, factor), train.labels.numpy()

    return load


def _faces() -> Images:
    images, labels = _embedded("faces", 1)()
    return smaller(images[:, 1:, 1:], 2), labels


def _archive(path: str, names: tuple[str, str], factor: int) -> Callable[[], Images]:
    def load() -> Images:
        with np.load(SHARED / path, allow_pickle=False) as arrays:
            images, labels = (arrays[name] for name in names)
        return smaller(images, factor), labels.squeeze().astype(np.int64)

    return load


def _mnist() -> Images:
    folder = SHARED / "mnist/MNIST/raw"
    images = np.frombuffer(gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())[16:], dtype=np.uint8)
    labels = np.frombuffer(gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:], dtype=np.uint8)
    return smaller(images.reshape(-1, 28, 28), 2), labels.astype(np.int64)


_OWN = ("train_images", "train_labels")
OFFLINE: Mapping[str, Callable[[], Images]] = {
    "digits": _embedded("digits", 1),
    "faces": _faces,
    "photos": _embedded("photos", 2),
}
"""Inside the wheels that are installed with this package."""

OTHERS: Mapping[str, Callable[[], Images]] = {
    "medical": _archive("medical_mnist/medical_mnist_6x1000.npz", ("images", "labels"), 4),
    "pneumonia": _archive("medmnist/pneumoniamnist.npz", _OWN, 2),
    "breast": _archive("medmnist/breastmnist.npz", _OWN, 2),
    "cifar10": _archive("cifar10/cifar10_lossless_subset.npz", _OWN, 2),
    "mnist": _mnist,
}
"""From ../shared/data."""

ALIKE = {True: ("medical", (0, 3, 5)), False: ("faces", (1,))}
"""Images that resemble each other, by whether ../shared/data is there: CT slices, else faces; and their classes."""


def sets(*, shared: bool) -> Mapping[str, Callable[[], Images]]:
    """Sets by name; without ``shared`` those that are always there."""
    return {**OFFLINE, **OTHERS} if shared and SHARED.is_dir() else OFFLINE


@lru_cache(maxsize=4)
def _loaded(name: str) -> Images:
    return {**OFFLINE, **OTHERS}[name]()


def draw(name: str, generator: np.random.Generator, *, classes: int | tuple[int, ...] = 0, most: int = MOST) -> Images:
    """Some images of a set, in a drawn order.

    Args:
        name: Name of the set.
        generator: Draws which.
        classes: How many classes, drawn; or which ones; 0 for all.
        most: Images at most; at least one of each class is among them.
    """
    images, labels = _loaded(name)
    known = np.unique(labels)
    drawn = generator.permutation(known)
    kept = drawn[: classes or len(known)] if isinstance(classes, int) else np.asarray(classes)
    of_class = [generator.permutation(np.flatnonzero(labels == one)) for one in kept]
    share = max(most // len(kept), 1)
    chosen = generator.permutation(np.concatenate([one[:share] for one in of_class]))
    found = np.unique(labels[chosen], return_inverse=True)[1]
    if len(kept) == 1:  # a set needs two classes: the brighter half is the other
        brightness = images[chosen].reshape(len(chosen), -1).mean(axis=1)
        found = (brightness > np.median(brightness)).astype(np.int64)
    return images[chosen], found
