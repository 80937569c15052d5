"""Published image sets through the loaders of torchvision and medmnist, fetched when they are not there yet."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fl_precode.data.dataset import DataUnavailableError, ImageData, ImageDataset, image_data
from fl_precode.models.input_spec import InputSpec
from fl_precode.places.cache_folder import cache_folder

logger = logging.getLogger(__name__)

CIFAR = {
    "cifar10": InputSpec(
        channels=3, height=32, width=32, classes=10, mean=(0.49147, 0.48226, 0.44677), std=(0.24703, 0.24349, 0.26159)
    ),
    "cifar100": InputSpec(
        channels=3, height=32, width=32, classes=100, mean=(0.50708, 0.48655, 0.44092), std=(0.26733, 0.25644, 0.27615)
    ),
}
"""Normalisation as it is commonly used for these sets."""

MEDMNIST = (
    "pathmnist", "dermamnist", "octmnist", "pneumoniamnist", "retinamnist", "breastmnist", "bloodmnist", "tissuemnist",
    "organamnist", "organcmnist", "organsmnist",
)  # fmt: skip
"""The two-dimensional sets of MedMNIST v2 (Yang et al. 2023) with one label per image."""

MULTI_LABEL = "chestmnist"
"""Several findings per image: cross-entropy over classes, which every attack here assumes, does not fit."""


def default_root() -> Path:
    """Where downloaded sets are kept unless a data root is given."""
    return cache_folder()


def load_cifar(name: str, root: Path, *, loader: Callable[..., Any] | None = None) -> ImageData:
    """CIFAR-10 or CIFAR-100 (Krizhevsky 2009) through torchvision.

    Args:
        name: ``cifar10`` or ``cifar100``.
        root: Folder of the unpacked archive.
        loader: torchvision's dataset class, for a copy with other checksums; by default the one for ``name``.

    Raises:
        DataUnavailableError: If torchvision is missing, or the files are neither there nor to be had.
    """
    chosen: Any = loader or getattr(_library("torchvision.datasets"), name.upper())
    wanted = f"{chosen.filename} (md5 {chosen.tgz_md5}) or the folder {chosen.base_folder} from it"
    archive = root / chosen.filename

    def fetch(folder: Path) -> None:
        if archive.is_file():
            (folder / archive.name).symlink_to(archive.resolve())
        chosen(root=str(folder), download=True)

    if not (root / chosen.base_folder).is_dir():
        if archive.is_file():
            _check(archive, chosen.tgz_md5)
        _fetch(name, wanted, root / chosen.base_folder, fetch)
    parts = []
    for train in (True, False):
        try:
            loaded = chosen(root=str(root), train=train, download=False)
        except RuntimeError as error:
            raise DataUnavailableError(
                f"{root / chosen.base_folder} is incomplete or altered; remove it and try again, or put {wanted} there"
            ) from error
        images = torch.from_numpy(np.ascontiguousarray(np.asarray(loaded.data).transpose(0, 3, 1, 2)))
        parts.append(ImageDataset(images, torch.tensor(loaded.targets), tuple(loaded.classes)))
    return image_data(name, parts[0], parts[1], known=CIFAR[name])


def load_medmnist(name: str, root: Path) -> ImageData:
    """A set of MedMNIST v2, 28x28, through the medmnist package.

    Raises:
        DataUnavailableError: If medmnist is missing, or the file is neither there nor to be had.
    """
    library = _library("medmnist")
    info = library.INFO[name]
    chosen = getattr(library, info["python_class"])
    file = root / f"{name}.npz"
    wanted = f"{file.name} (md5 {info['MD5']})"
    if not file.is_file():
        _fetch(name, wanted, file, lambda folder: chosen(split="train", root=str(folder), download=True))
    _check(file, info["MD5"])
    names = tuple(info["label"][str(label)] for label in range(len(info["label"])))
    parts = []
    for split in ("train", "test"):
        loaded = chosen(split=split, root=str(root), download=False)
        images = np.asarray(loaded.imgs)
        coloured = images[..., None] if images.ndim == 3 else images
        stacked = torch.from_numpy(np.ascontiguousarray(coloured.transpose(0, 3, 1, 2)))
        labels = torch.from_numpy(np.asarray(loaded.labels).astype(np.int64)[:, 0])
        parts.append(ImageDataset(stacked, labels, names))
    return image_data(name, parts[0], parts[1])


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:
        # A torchvision that was built for another torch raises RuntimeError.
        raise DataUnavailableError(
            f"the package {name.split('.')[0]} cannot be imported ({error}); "
            "install it with: pip install 'fl-precode[datasets]'"
        ) from error


def _fetch(name: str, wanted: str, place: Path, download: Callable[[Path], object]) -> None:
    """Let a loader download into a temporary folder; only what arrived whole is moved to its place."""
    root = place.parent
    logger.info("downloading %s into %s", name, root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as folder, quiet[0], quiet[1]:
            download(Path(folder))
            # Another process may have been faster; its copy passed the same checks.
            if not place.exists():
                (Path(folder) / place.name).replace(place)
    except Exception as error:
        # Loaders let every kind of network and file error through; medmnist catches even Ctrl-C.
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        cause = " ".join(str(error.__context__ or error).split())[:200]
        raise DataUnavailableError(
            f"{name} is not in {root} and could not be downloaded ({cause}). "
            f"Get {wanted} on another machine and put it into {root}; or choose another folder with data-root"
        ) from error


def _check(file: Path, md5: str) -> None:
    """Refuse a file that is not the published one; it is left as it is."""
    with file.open("rb") as content:
        found = hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        raise DataUnavailableError(
            f"{file} is incomplete or altered (md5 {found}, expected {md5}); remove it to have it downloaded, or "
            "replace it"
        )
