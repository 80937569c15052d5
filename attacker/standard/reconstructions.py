"""Reconstructions that somebody else made: a file of images for each update of a tape, checked before it is used.

``.npz`` or ``.safetensors``: one array for each update, (images, channels, height, width) in [0, 1], in any order of
the images. Its name is the update's file on the tape without folder and ending, such as ``round-0001-node-7``.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

_MOST_NAMED: Final = 3
_ROUNDING: Final = 1e-6
"""By which images may leave [0, 1]."""


def name_of(file: str) -> str:
    """The name of an update's array.

    >>> name_of("observations/round-0001-node-7.safetensors")
    'round-0001-node-7'
    """
    return PurePosixPath(file).stem


def read_reconstructions(path: Path) -> tuple[dict[str, Tensor], str]:
    """The arrays of a file by name, in single precision, and the file's SHA-256.

    Raises:
        ValueError: If it is no such file, or an array holds no numbers.
        OSError: If it cannot be read.
    """
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if path.suffix == ".safetensors":
        try:
            return {name: _real(name, value) for name, value in load(content).items()}, digest
        except SafetensorError as error:
            raise ValueError(f"{path} is no complete safetensors file: {error}") from error
    if path.suffix != ".npz":
        raise ValueError(f"expected reconstructions in a file ending in .npz or .safetensors, got {path}")
    try:
        with zipfile.ZipFile(path):
            pass
        with np.load(path, allow_pickle=False) as arrays:
            return {name: _real(name, torch.as_tensor(arrays[name])) for name in arrays.files}, digest
    except (zipfile.BadZipFile, EOFError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no complete .npz file of floating-point arrays: {error}") from error


def checked(
    arrays: Mapping[str, Tensor], sizes: Mapping[str, int], known: Sequence[str], shape: tuple[int, int, int]
) -> dict[str, Tensor]:
    """The images of each update, in the order of the updates.

    Args:
        arrays: By name, see `name_of`.
        sizes: Name to the number of images behind each update that is scored.
        known: Names of all updates of the tape.
        shape: Channels, height, width.

    Raises:
        ValueError: If an update is missing, one is not on the tape, or images have another shape, are not finite or
            leave [0, 1]; all of it is named.
    """
    problems = _missing(arrays, sizes, known)
    for name, count in sizes.items():
        if name in arrays:
            problems += [f"{name}: {problem}" for problem in _wrong(arrays[name], count, shape)]
    if problems:
        raise ValueError("the reconstructions cannot be scored: " + "; ".join(problems))
    return {name: arrays[name].clamp(0, 1) for name in sizes}


def _missing(arrays: Mapping[str, Tensor], sizes: Mapping[str, int], known: Sequence[str]) -> list[str]:
    missing = [name for name in sizes if name not in arrays]
    foreign = sorted(arrays.keys() - set(known))
    problems = []
    if missing:
        problems.append(
            f"updates are missing: {_some(missing)}; give every one an array, grey images (0.5) where nothing was found"
        )
    if foreign:
        problems.append(f"arrays are of no update on this tape: {_some(foreign)}; the tape has {_some(known)}")
    return problems


def _wrong(images: Tensor, count: int, shape: tuple[int, int, int]) -> list[str]:
    if tuple(images.shape) != (count, *shape):
        return [f"expected the shape {(count, *shape)} (images, channels, height, width), got {tuple(images.shape)}"]
    if not bool(torch.isfinite(images).all()):
        return ["expected finite numbers, got NaN or infinite ones; write grey images (0.5) where nothing was found"]
    least, most = float(images.min()), float(images.max())
    if least < -_ROUNDING or most > 1 + _ROUNDING:
        return [f"expected numbers in [0, 1], got {least:.3g} to {most:.3g}; undo the normalisation, then clamp"]
    return []


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _real(name: str, value: Tensor) -> Tensor:
    if not value.is_floating_point():
        raise ValueError(f"{name}: expected floating-point numbers in [0, 1], got {value.dtype}")
    return value.float()
