"""Truth that somebody put together by hand: folders of pictures, or one .npz file."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attacker.audit.truth.base import HeldTruth, Located, Truth
from fl_precode.group_columns import TABLE_NAME, columns_of_arrays, columns_of_folder
from fl_precode.models.input_spec import InputSpec
from fl_precode.true_images import true_batch

PICTURE_ENDINGS: Final = (".png", ".jpg", ".jpeg")
CLASS_LIST: Final = "classes.txt"
_ROUND: Final = re.compile(r"round-0*(\d+)")
_NO_CLASS: Final = -1
_MODES: Final = ("1", "L", "P", "RGB")
"""Pillow's modes whose pixels are bytes; it would cut others off without a word."""


class FolderTruth(HeldTruth):
    """Pictures in ``CLIENT/CLASS`` or ``CLIENT/round-N/CLASS``; in ``CLASS`` where the tape has one client.

    Args:
        folder: Folder of all clients.
        clients: Node id to name.
        nodes: On the tape.
        inputs: The images that the model takes.

    Raises:
        ValueError: If no folder belongs to a client of the tape, the number of a class is not known, or ``groups.csv``
            does not fit the pictures.
    """

    def __init__(self, folder: Path, clients: Mapping[str, str], nodes: Collection[str], inputs: InputSpec) -> None:
        super().__init__(str(folder), clients)
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder; expected one with a folder of pictures for each client")
        self._inputs = inputs
        self._folders = _client_folders(folder, clients, nodes)
        self._numbers = _class_numbers(folder, self._all_classes(), inputs.classes)
        self._groups = _groups_of_files(folder)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the folders, where every class has one."""
        names = {number: name for name, number in self._numbers.items()}
        return tuple(names.get(number, str(number)) for number in range(self._inputs.classes))

    def knows(self, entry: Located) -> bool:
        """Whether there are pictures of the client, in this round or in all."""
        return bool(self._files(entry))

    def truth(self, entry: Located) -> Truth | None:
        """The pictures of the client, in the order of classes and names."""
        files = self._files(entry)
        if not files:
            return None
        images = torch.cat([_same_size(self._picture(path), files[0][0], self._inputs) for path, _ in files])
        labels = torch.tensor([label for _, label in files])
        groups = {name: [of_files[path] for path, _ in files] for name, of_files in self._groups.items()}
        return Truth(images=images, labels=labels, groups=groups)

    def classes(self, entry: Located) -> tuple[int, ...] | None:
        """By the names of folders."""
        return tuple(sorted({label for _, label in self._files(entry)})) or None

    def held(self) -> Iterator[Truth]:
        """Picture by picture; those in a folder of no class have none."""
        for folder in self._folders.values():
            for path in sorted(folder.rglob("*")):
                if path.suffix.lower() in PICTURE_ENDINGS:
                    label = torch.tensor([self._numbers.get(path.parent.name, _NO_CLASS)])
                    yield Truth(images=self._picture(path), labels=label)

    def _files(self, entry: Located) -> list[tuple[Path, int]]:
        folder = self._folders.get(entry.node)
        if folder is None:
            return []
        rounds = {
            int(match[1]): subfolder for subfolder in _subfolders(folder) if (match := _ROUND.fullmatch(subfolder.name))
        }
        chosen = rounds.get(entry.round, folder)
        return [
            (path, self._numbers[class_folder.name])
            for class_folder in sorted(_class_folders(chosen), key=lambda subfolder: self._numbers[subfolder.name])
            for path in sorted(class_folder.iterdir())
            if path.suffix.lower() in PICTURE_ENDINGS
        ]

    def _all_classes(self) -> list[str]:
        roots = [*self._folders.values()]
        subfolders = [subfolder for folder in roots for subfolder in _subfolders(folder)]
        roots += [subfolder for subfolder in subfolders if _ROUND.fullmatch(subfolder.name)]
        return sorted({class_folder.name for root in roots for class_folder in _class_folders(root)})

    def _picture(self, path: Path) -> Tensor:
        try:
            with Image.open(path) as picture:
                if picture.mode not in _MODES:
                    raise ValueError(
                        f"{path} has Pillow mode {picture.mode}; expected 8-bit grey or colour without transparency"
                    )
                pixels = np.asarray(picture.convert("L" if self._inputs.channels == 1 else "RGB"))
        except OSError as error:
            raise ValueError(f"{path} cannot be read as a picture ({error}); remove or replace it") from error
        planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        return torch.tensor(planes.copy(), dtype=torch.float32)[None] / 255


def _groups_of_files(folder: Path) -> dict[str, dict[Path, str]]:
    """Column of ``groups.csv`` to the group of each picture; no folder is read where there is no such table."""
    if not (folder / TABLE_NAME).is_file():
        return {}
    pictures = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in PICTURE_ENDINGS]
    columns = columns_of_folder(folder, pictures)
    return {name: dict(zip(pictures, column, strict=True)) for name, column in columns.items()}


def _same_size(image: Tensor, path: Path, inputs: InputSpec) -> Tensor:
    if tuple(image.shape[1:]) != inputs.shape:
        raise ValueError(
            f"its pictures are {image.shape[3]}x{image.shape[2]} pixels ({path} and others), and the model takes "
            f"{inputs.width}x{inputs.height}; save what the client's transform gives, or record it with record_truth"
        )
    return image


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _class_folders(folder: Path) -> list[Path]:
    return [subfolder for subfolder in _subfolders(folder) if not _ROUND.fullmatch(subfolder.name)]


def _client_folders(folder: Path, clients: Mapping[str, str], nodes: Collection[str]) -> dict[str, Path]:
    there = {subfolder.name: subfolder for subfolder in _subfolders(folder)}
    folders = {node: there[name] for node in nodes for name in (node, clients.get(node, "")) if name in there}
    if folders:
        return folders
    if len(nodes) == 1:
        return dict.fromkeys(nodes, folder)
    raise ValueError(
        f"{folder} has no folder of a client of the tape; expected folders named after node ids "
        f"({', '.join(sorted(nodes)[:3])}, ...), or after the names in [clients] of the notes beside the tape; found "
        f"{', '.join(sorted(there)[:3]) or 'none'}"
    )


def _class_numbers(folder: Path, names: Sequence[str], classes: int) -> dict[str, int]:
    """Number of each class folder: its name, else its line in ``classes.txt``, else its place among all classes."""
    listed = folder / CLASS_LIST
    if listed.is_file():
        order = [line.strip() for line in listed.read_text().splitlines() if line.strip()]
    elif all(name.isdecimal() for name in names):
        return {name: int(name) for name in names}
    else:
        order = list(names)
        if len(order) != classes:
            raise ValueError(
                f"{folder} has folders of {len(order)} classes ({', '.join(order[:3])}, ...) and the model {classes}, "
                f"so that their numbers are not known; write a file {CLASS_LIST} there, one name a line, in the "
                "order of the model's outputs, or name the folders by number"
            )
    if missing := sorted(set(names) - set(order)):
        raise ValueError(f"{listed} does not name the class {missing[0]!r}, which has a folder")
    return {name: number for number, name in enumerate(order)}


class NpzTruth(HeldTruth):
    """Arrays ``images`` and ``labels`` with, for each image, ``node`` and ``round`` where they differ, ``group_NAME``.

    Args:
        path: Path of the file.
        clients: Node id to name; ``node`` may hold either.
        nodes: On the tape.

    Raises:
        ValueError: If it is no such file, an array is missing or of another form, or the clients are not told apart.
    """

    def __init__(self, path: Path, clients: Mapping[str, str], nodes: Collection[str]) -> None:
        super().__init__(str(path), clients)
        arrays = _arrays(path)
        if missing := [name for name in ("images", "labels") if name not in arrays]:
            raise ValueError(f"{path}: expected arrays 'images' and 'labels', found {sorted(arrays)}; {missing[0]!r} "
                             "is missing")  # fmt: skip
        try:
            self._images, self._labels = true_batch(_channels_second(arrays["images"]), arrays["labels"])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        self._nodes = _column(path, arrays, "node", len(self._labels))
        self._rounds = _column(path, arrays, "round", len(self._labels))
        self._groups = columns_of_arrays(path, arrays, len(self._labels))
        if self._nodes is None and len(nodes) > 1:
            raise ValueError(
                f"{path} does not say whose its images are, and the tape has {len(nodes)} clients; add an array "
                "'node' with the node id, or the name in [clients] of the notes, of each image"
            )

    def knows(self, entry: Located) -> bool:
        """Whether some images are of this client and round."""
        return bool(self._of(entry).any())

    def truth(self, entry: Located) -> Truth | None:
        """The images of this client and round."""
        mine = self._of(entry)
        if not bool(mine.any()):
            return None
        places = mine.nonzero().flatten().tolist()
        groups = {name: [column[place] for place in places] for name, column in self._groups.items()}
        return Truth(images=self._images[mine], labels=self._labels[mine], groups=groups)

    def classes(self, entry: Located) -> tuple[int, ...] | None:
        """Classes of the labels."""
        return tuple(sorted(set(self._labels[self._of(entry)].tolist()))) or None

    def held(self) -> Iterator[Truth]:
        """All at once."""
        yield Truth(images=self._images, labels=self._labels)

    def _of(self, entry: Located) -> Tensor:
        mine = np.ones(len(self._labels), dtype=bool)
        if self._nodes is not None:
            mine &= np.isin(self._nodes, [entry.node, self.clients.get(entry.node, entry.node)])
        if self._rounds is not None:
            mine &= self._rounds == str(entry.round)
        return torch.from_numpy(mine)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """None are in the file."""
        return ()


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise ValueError(f"there is no file {path}; expected an .npz file with arrays 'images' and 'labels'")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, zipfile.BadZipFile, EOFError, OSError, TypeError, AttributeError, zlib.error) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); expected an .npz file of plain arrays, as numpy.savez writes it; arrays "
            "of Python objects are refused, as reading them would run code"
        ) from error


def _channels_second(images: Any) -> Any:
    """Channels behind the batch, wherever they are clearly last, as most people keep pictures in files."""
    last = images.ndim == 4 and images.shape[3] in (1, 3) and images.shape[1] not in (1, 3)
    return images.transpose(0, 3, 1, 2) if last else images


def _column(path: Path, arrays: Mapping[str, np.ndarray], name: str, count: int) -> np.ndarray | None:
    if name not in arrays:
        return None
    column = arrays[name].astype(str).reshape(-1)
    if len(column) not in (1, count):
        raise ValueError(f"{path}: expected {name!r} as one value or {count}, one for each image, got {len(column)}")
    return np.broadcast_to(column, (count,))
