"""Real images that come inside the wheels of scikit-image and scikit-learn: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from fl_precode.data.dataset import DataUnavailableError, ImageData, ImageDataset, image_data, split_data

PATCH = 32
"""Side of a photograph's patch, pixels."""

LARGE_PATCH = 224
"""Side of a large patch, pixels: what vision transformers and ImageNet's models see."""

TRAIN_PER_PHOTO, TEST_PER_PHOTO = 400, 100
LARGE_PER_PHOTO = {"train": 12, "test": 4}
TEST_SHARE = 0.25
MIN_GREY_STD = 8.0
"""Patches with less contrast (of 255 grey levels) show nothing but sky or background, and are left out."""

PHOTOS = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "deep field": ("skimage", "data/hubble_deep_field.jpg"),
    "tissue": ("skimage", "data/ihc.png"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "retina": ("skimage", "data/retina.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "palace": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
}
"""Class name to package and file of the photograph."""


def _file(package: str, relative: str) -> Path:
    spec = find_spec(package)
    folder = next(iter(spec.submodule_search_locations or ()), None) if spec else None
    path = Path(folder or "") / relative
    if folder is None or not path.is_file():
        distribution = {"skimage": "scikit-image", "sklearn": "scikit-learn"}[package]
        raise DataUnavailableError(
            f"expected {relative} inside the installed {distribution}; (re)install it: pip install "
            f"--force-reinstall {distribution}"
        )
    return path


def load_faces() -> ImageData:
    """200 grey 25x25 patches of Labelled Faces in the Wild: the first 100 show a face, the others do not.

    Source: ``lfw_subset.npy`` of scikit-image (Huang et al. 2007).
    """
    patches = np.load(_file("skimage", "data/lfw_subset.npy"), allow_pickle=False)
    images = np.round(patches * 255).astype(np.uint8)[:, None]
    labels = np.repeat(np.array([1, 0]), 100)
    return split_data("faces", images, labels, ("no face", "face"))


def load_digits() -> ImageData:
    """1,797 handwritten 8x8 digits (UCI Optical Recognition of Handwritten Digits), from scikit-learn."""
    _file("sklearn", "datasets/data/digits.csv.gz")
    from sklearn.datasets import load_digits as load

    bunch = load()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    return split_data("digits", images, np.asarray(bunch.target), tuple(str(digit) for digit in range(10)))


def load_photos() -> ImageData:
    """32x32 colour patches of ten photographs; the class is the photograph.

    The right quarter of each photograph is the test region. No pixel of it is in a training patch.
    """
    return _cut("photos", PATCH, patch_corners)


def load_large_photos() -> ImageData:
    """224x224 colour patches of the same photographs, up to 12 and 4 of each, at places at least 38 pixels apart.

    The right edge of each photograph, a quarter or 224 pixels, is the test region: no pixel of it is in a training
    patch.
    """
    return _cut("photos224", LARGE_PATCH, large_corners)


def _cut(name: str, side: int, corners_of: Callable[[np.ndarray], dict[str, list[tuple[int, int]]]]) -> ImageData:
    """Square patches of all photographs; the class is the photograph."""
    patches: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    labels: dict[str, list[tuple[int, int]]] = {"train": [], "test": []}
    for label, (package, relative) in enumerate(PHOTOS.values()):
        picture = _picture(_file(package, relative))
        for part, corners in corners_of(picture).items():
            patches[part] += [picture[y : y + side, x : x + side] for y, x in corners]
            labels[part] += [(place, label) for place in range(len(corners))]
    sets = []
    for part in ("train", "test"):
        # One patch of each photograph in turn: the first few images show different things.
        order = sorted(range(len(labels[part])), key=labels[part].__getitem__)
        images = np.ascontiguousarray(np.stack(patches[part])[order].transpose(0, 3, 1, 2))
        classes = torch.tensor([labels[part][i][1] for i in order])
        sets.append(ImageDataset(torch.from_numpy(images), classes, tuple(PHOTOS)))
    return image_data(name, sets[0], sets[1])


def patch_corners(picture: np.ndarray) -> dict[str, list[tuple[int, int]]]:
    """Upper left corners (y, x) of a photograph's training and test patches.

    Evenly spread over the patches that have contrast, on a grid of 8 pixels.

    Args:
        picture: (height, width, 3), uint8.
    """
    height, width = picture.shape[:2]
    border = width - round(width * TEST_SHARE)
    regions = {"train": (0, border, TRAIN_PER_PHOTO), "test": (border, width, TEST_PER_PHOTO)}
    corners = {}
    grey = picture.mean(axis=2)
    for part, (left, right, wanted) in regions.items():
        grid = [(y, x) for y in range(0, height - PATCH + 1, 8) for x in range(left, right - PATCH + 1, 8)]
        lively = [(y, x) for y, x in grid if grey[y : y + PATCH, x : x + PATCH].std() >= MIN_GREY_STD]
        chosen = np.unique(np.linspace(0, len(lively) - 1, min(wanted, len(lively))).round().astype(int))
        corners[part] = [lively[i] for i in chosen]
    return corners


def large_corners(picture: np.ndarray) -> dict[str, list[tuple[int, int]]]:
    """Upper left corners (y, x) of a photograph's large training and test patches, evenly spread.

    Args:
        picture: (height, width, 3), uint8, at least 224 pixels high and twice as wide.
    """
    height, width = picture.shape[:2]
    border = width - max(LARGE_PATCH, round(width * TEST_SHARE))
    corners = {}
    for part, (left, right) in {"train": (0, border), "test": (border, width)}.items():
        rows, columns = (range(0, room - LARGE_PATCH + 1, PATCH + 6) for room in (height, right - left))
        grid = [(y, left + x) for y in rows for x in columns]
        chosen = np.linspace(0, len(grid) - 1, min(LARGE_PER_PHOTO[part], len(grid))).round().astype(int)
        corners[part] = [grid[i] for i in chosen]
    return corners


def _picture(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
