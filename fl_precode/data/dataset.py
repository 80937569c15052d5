"""Labelled images in memory, and what belongs to a named set of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fl_precode.group_columns import Groups
from fl_precode.models.input_spec import InputSpec


class DataUnavailableError(RuntimeError):
    """The images are not on this machine and could not be fetched; the text names the file and its place."""


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Images as they are stored, given out in [0, 1].

    Args:
        images: (n, channels, height, width), uint8.
        labels: (n,), whole numbers from 0.
        class_names: One for each class.
        groups: Columns of groups, which nobody trains on.

    Raises:
        ValueError: If images, labels and groups do not fit each other.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, class_names: tuple[str, ...], groups: Groups | None = None
    ) -> None:
        if images.dim() != 4 or images.dtype != torch.uint8:
            raise ValueError(
                f"expected uint8 images (n, channels, height, width), got {images.dtype} of {tuple(images.shape)}"
            )
        if labels.shape != images.shape[:1]:
            raise ValueError(f"expected one label for each of {len(images)} images, got {tuple(labels.shape)}")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(class_names):
            raise ValueError(
                f"expected labels from 0 to {len(class_names) - 1}, got {int(labels.min())} to {int(labels.max())}"
            )
        for name, column in (groups or {}).items():
            if len(column) != len(labels):
                raise ValueError(f"expected one group {name!r} for each of {len(labels)} images, got {len(column)}")
        self.images = images
        self.groups: Mapping[str, tuple[str, ...]] = {name: tuple(column) for name, column in (groups or {}).items()}
        self.labels = labels.to(torch.int64)
        self.class_names = class_names

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """(channels, height, width) float32 in [0, 1], and the label."""
        return self.images[index].float() / 255, int(self.labels[index])

    def batch(self, indices: Iterable[int]) -> tuple[Tensor, Tensor]:
        """Several images at once: (batch, channels, height, width) float32 in [0, 1], and (batch,) labels."""
        chosen = torch.as_tensor(np.asarray(list(indices), dtype=np.int64))
        return self.images[chosen].float() / 255, self.labels[chosen]


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """A named image set with its split and input domain."""

    name: str
    train: ImageDataset
    test: ImageDataset
    inputs: InputSpec


def image_data(name: str, train: ImageDataset, test: ImageDataset, *, known: InputSpec | None = None) -> ImageData:
    """Put a set together; mean and standard deviation are measured on the training images unless known.

    Raises:
        ValueError: If training and test images differ in shape, a part is empty, or there are fewer than two classes.
    """
    if not len(train) or not len(test):
        raise ValueError(f"{name}: expected training and test images, got {len(train)} and {len(test)}")
    if train.images.shape[1:] != test.images.shape[1:]:
        raise ValueError(
            f"{name}: expected training and test images of one shape, got {tuple(train.images.shape[1:])} and "
            f"{tuple(test.images.shape[1:])}"
        )
    channels, height, width = (int(size) for size in train.images.shape[1:])
    if known is None:
        mean, std = _moments(train.images)
        known = InputSpec(
            channels=channels, height=height, width=width, classes=len(train.class_names), mean=mean, std=std
        )
    return ImageData(name=name, train=train, test=test, inputs=replace(known, height=height, width=width))


def _moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and standard deviation on the [0, 1] scale, from exact integer histograms."""
    means, stds = [], []
    levels = torch.arange(256, dtype=torch.float64) / 255
    for channel in range(images.shape[1]):
        share = torch.bincount(images[:, channel].flatten().long(), minlength=256).double()
        share /= share.sum()
        mean = float((share * levels).sum())
        means.append(round(mean, 5))
        # A set of one colour would have none; the smallest step of the scale keeps it finite.
        stds.append(round(max(float((share * (levels - mean) ** 2).sum()) ** 0.5, 1 / 255), 5))
    return tuple(means), tuple(stds)


def stratified_split(labels: np.ndarray, *, every: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and test indices: within each class every ``every``-th image is for testing. No chance involved.

    >>> [part.tolist() for part in stratified_split(np.array([0, 0, 0, 0, 1, 1]), every=2)]
    [[0, 2, 4], [1, 3, 5]]
    """
    test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        # A class with fewer images gives its last one, if it has another to train on.
        test[members[min(every, max(len(members), 2)) - 1 :: every]] = True
    return np.flatnonzero(~test), np.flatnonzero(test)


def split_data(
    name: str, images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...], groups: Groups | None = None
) -> ImageData:
    """A set without a split of its own: one image in five, of each class, is for testing.

    Args:
        name: Name of the set.
        images: (n, channels, height, width), uint8.
        labels: (n,).
        class_names: One for each class.
        groups: Columns of groups.
    """
    parts = [
        ImageDataset(
            torch.from_numpy(images[part]),
            torch.from_numpy(labels[part].astype(np.int64)),
            class_names,
            {column: [of_all[place] for place in part] for column, of_all in (groups or {}).items()},
        )
        for part in stratified_split(labels, every=5)
    ]
    return image_data(name, parts[0], parts[1])
