"""People's own images: an .npz file, or a folder of class folders."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from fl_precode.data.dataset import DataUnavailableError, ImageData, ImageDataset, image_data, split_data
from fl_precode.group_columns import columns_of_arrays, columns_of_folder

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


def load_npz(path: Path) -> ImageData:
    """Arrays ``images`` (n, height, width) or (n, height, width, channels), uint8, and ``labels`` (n,).

    ``test_images`` and ``test_labels`` are the test set where they are given; otherwise one image in five is. The first
    two may also be named ``train_images`` and ``train_labels``, as in the files of MedMNIST. Arrays ``group_NAME`` say
    for each image what group it belongs to (`fl_precode.group_columns`).

    Raises:
        DataUnavailableError: If there is no such file.
        ValueError: If it is no .npz file, needs pickle, or an array is missing or of another form.
    """
    if not path.is_file():
        raise DataUnavailableError(f"there is no file {path}; expected an .npz file with arrays 'images' and 'labels'")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, zipfile.BadZipFile, EOFError, OSError, TypeError, AttributeError, zlib.error) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); expected an .npz file of plain arrays, as numpy.savez writes it; arrays "
            "of Python objects are refused, as reading them would run code"
        ) from error
    own = "train_" if "images" not in arrays and "train_images" in arrays else ""
    images, labels = _checked(path, arrays, f"{own}images", f"{own}labels")
    used = np.unique(labels)
    if len(used) and used[-1] + 1 > len(used):
        raise ValueError(
            f"{path}: expected 'labels' to use every class from 0 on, got {len(used)} classes up to {used[-1]}; "
            "number them: numpy.unique(labels, return_inverse=True)[1]"
        )
    if "test_labels" in arrays and "test_images" not in arrays:
        raise ValueError(f"{path}: found 'test_labels' without 'test_images'; expected both or neither")
    names = tuple(str(label) for label in range(int(labels.max(initial=0)) + 1))
    groups = columns_of_arrays(path, arrays, len(labels), own)
    if "test_images" not in arrays:
        return split_data(f"npz:{path.name}", images, labels, names, groups)
    parts = [(images, labels, groups), (*_checked(path, arrays, "test_images", "test_labels"), {})]
    sets = [
        ImageDataset(torch.from_numpy(pictures), torch.from_numpy(classes), names, columns)
        for pictures, classes, columns in parts
    ]
    return image_data(f"npz:{path.name}", sets[0], sets[1])


def _checked(path: Path, arrays: dict[str, np.ndarray], pictures: str, classes: str) -> tuple[np.ndarray, np.ndarray]:
    missing = [name for name in (pictures, classes) if name not in arrays]
    if missing:
        raise ValueError(f"{path}: expected arrays {pictures!r} and {classes!r}, found {sorted(arrays)}")
    images, labels = arrays[pictures], arrays[classes].squeeze()
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise ValueError(
            f"{path}: expected {pictures!r} as uint8 (n, height, width) or (n, height, width, channels), got "
            f"{images.dtype} of shape {images.shape}"
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1] or (len(labels) and labels.min() < 0):
        raise ValueError(
            f"{path}: expected {classes!r} as {len(images)} whole numbers from 0, got {labels.dtype} of shape "
            f"{labels.shape}"
        )
    coloured = images[..., None] if images.ndim == 3 else images
    if coloured.shape[3] not in (1, 3):
        raise ValueError(
            f"{path}: {pictures!r} has {coloured.shape[3]} channels in its last axis; expected 1 (grey) or 3 (colour). "
            "Are the channels in the second axis? Move them: images.transpose(0, 2, 3, 1)"
        )
    return np.ascontiguousarray(coloured.transpose(0, 3, 1, 2)), labels.astype(np.int64)


def load_folder(path: Path) -> ImageData:
    """One folder for each class, with pictures of one size; grey when all of them are, else colour.

    A table ``groups.csv`` beside them says what groups each picture belongs to (`fl_precode.group_columns`).

    Raises:
        DataUnavailableError: If there is no such folder.
        ValueError: If there are fewer than two class folders, one is empty, or a picture cannot be read or differs in
            size, or ``groups.csv`` does not fit them; the text names it.
    """
    if not path.is_dir():
        raise DataUnavailableError(f"there is no folder {path}; expected one folder of pictures for each class in it")
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    if len(folders) < 2:
        raise ValueError(f"{path}: expected at least two class folders, found {[folder.name for folder in folders]}")
    files, labels = [], []
    for label, folder in enumerate(folders):
        inner = next((part for part in sorted(folder.iterdir()) if part.is_dir()), None)
        if inner is not None:
            raise ValueError(
                f"{inner} is a folder inside a class folder; expected pictures only. If {path} holds parts like train "
                "and test, name one of them"
            )
        pictures = sorted(file for file in folder.iterdir() if file.suffix.lower() in PICTURE_ENDINGS)
        if not pictures:
            raise ValueError(f"{folder} holds no pictures; expected files ending in {', '.join(PICTURE_ENDINGS)}")
        files += pictures
        labels += [label] * len(pictures)
    groups = columns_of_folder(path, files)
    names = tuple(folder.name for folder in folders)
    return split_data(f"folder:{path.name}", _read_pictures(files), np.array(labels), names, groups)


def _read_pictures(files: list[Path]) -> np.ndarray:
    from PIL import Image

    opened = []
    for file in files:
        try:
            with Image.open(file) as picture:
                grey = picture.mode in ("1", "L")
                if not grey and picture.mode not in ("RGB", "P"):
                    # Pillow would cut 16-bit values off at 255, and drop transparency, without a word.
                    raise ValueError(
                        f"{file} has Pillow mode {picture.mode}; expected 8-bit grey or colour without transparency: "
                        "convert it first"
                    )
                opened.append(np.asarray(picture.convert("L" if grey else "RGB")))
        except OSError as error:
            raise ValueError(f"{file} cannot be read as a picture ({error}); remove or replace it") from error
        if opened[-1].shape[:2] != opened[0].shape[:2]:
            raise ValueError(
                f"{file} is {opened[-1].shape[1]}x{opened[-1].shape[0]} pixels, the first picture is "
                f"{opened[0].shape[1]}x{opened[0].shape[0]}; scale all pictures to one size"
            )
    if all(picture.ndim == 2 for picture in opened):
        return np.stack(opened)[:, None]
    coloured = [np.repeat(p[..., None], 3, axis=2) if p.ndim == 2 else p for p in opened]
    return np.ascontiguousarray(np.stack(coloured).transpose(0, 3, 1, 2))
