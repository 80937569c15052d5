"""Image sets by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fl_precode.data.dataset import ImageData
from fl_precode.data.downloaded import CIFAR, MEDMNIST, MULTI_LABEL, default_root, load_cifar, load_medmnist
from fl_precode.data.embedded import load_digits, load_faces, load_large_photos, load_photos
from fl_precode.data.own_files import load_folder, load_npz


@dataclass(frozen=True, kw_only=True)
class DatasetEntry:
    """One line of the list of image sets, and how the set is loaded from a folder of downloads."""

    description: str
    load: Callable[[Path], ImageData]


DATASETS: dict[str, DatasetEntry] = {
    "faces": DatasetEntry(
        description="200 grey 25x25 patches, face or not (LFW, inside scikit-image)", load=lambda root: load_faces()
    ),
    "photos": DatasetEntry(
        description="4,950 colour 32x32 patches of ten photographs (inside scikit-image and scikit-learn)",
        load=lambda root: load_photos(),
    ),
    "photos224": DatasetEntry(
        description="150 colour 224x224 patches of the same ten photographs", load=lambda root: load_large_photos()
    ),
    "digits": DatasetEntry(
        description="1,797 grey 8x8 handwritten digits (inside scikit-learn)", load=lambda root: load_digits()
    ),
    **{
        name: DatasetEntry(
            description=f"colour 32x32, {spec.classes} classes (torchvision, downloaded)",
            load=partial(load_cifar, name),
        )
        for name, spec in CIFAR.items()
    },
    **{
        name: DatasetEntry(
            description="medical images 28x28 (MedMNIST v2, downloaded)", load=partial(load_medmnist, name)
        )
        for name in MEDMNIST
    },
}

OWN_FILES: dict[str, tuple[str, Callable[[Path], ImageData]]] = {
    "npz": ("your own .npz file with arrays images (uint8) and labels", load_npz),
    "folder": ("your own pictures, one folder for each class", load_folder),
}


def check_dataset(name: str) -> None:
    """Refuse a name that no set answers to; nothing is loaded.

    Raises:
        ValueError: If the name is unknown; near names are suggested.
    """
    kind, colon, path = name.partition(":")
    if colon and kind in OWN_FILES:
        if not Path(path).is_absolute():
            # Flower starts its processes in other folders, so that a relative path would mean another place.
            raise ValueError(f"expected an absolute path after {kind!r}:, got {path!r}")
        return
    if name == MULTI_LABEL:
        raise ValueError(f"{name} has several labels per image, and models here choose one class; take another set")
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(DATASETS)}"
        raise ValueError(f"unknown image set {name!r}; {hint} (or npz:PATH, folder:PATH)")


def load_data(name: str, data_root: str | Path = "") -> ImageData:
    """Load an image set.

    Args:
        name: From ``DATASETS``, or ``npz:PATH``, ``folder:PATH`` with an absolute path.
        data_root: Folder of downloaded sets; empty means ``~/.cache/fl-precode``.

    Raises:
        ValueError: If the name is unknown, or the files are not what they should be.
        DataUnavailableError: If the files are not there and could not be fetched.
    """
    check_dataset(name)
    kind, _, path = name.partition(":")
    if kind in OWN_FILES:
        return OWN_FILES[kind][1](Path(path))
    return DATASETS[name].load(Path(data_root).expanduser() if data_root else default_root())
