"""Columns that say which group each image of a set belongs to, such as a sex or a site. For evaluation only.

An ``.npz`` file has an array ``group_NAME`` for each column, with one entry for each image; a folder has a table
``groups.csv`` of its pictures. No client trains on them, and no attack sees them.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np

Groups = Mapping[str, Sequence[str]]
"""Name of a column to the group of each image, in their order; empty where the group of an image is not known."""

PREFIX: Final = "group_"
"""What the names of columns begin with in an ``.npz`` file."""

TABLE_NAME: Final = "groups.csv"
_FILE: Final = "file"
_LONGEST: Final = 100
"""Characters of a name: a longer one is a remark, and makes a group of each image."""


def columns_of_arrays(
    path: Path, arrays: Mapping[str, np.ndarray], images: int, part: str = ""
) -> dict[str, tuple[str, ...]]:
    """The columns among the arrays of an ``.npz`` file.

    Args:
        path: Path of the file, for messages.
        arrays: By name.
        images: How many there are.
        part: What the names of this part's arrays begin with, such as ``train_``; columns may leave it out.

    Raises:
        ValueError: If a column has another length, or holds anything but text, whole numbers and yes or no.
    """
    named = {name.removeprefix(part): (name, array) for name, array in arrays.items()}
    return {
        bare.removeprefix(PREFIX): _column(path, name, array, images)
        for bare, (name, array) in named.items()
        if bare.startswith(PREFIX) and bare != PREFIX
    }


def _column(path: Path, name: str, array: np.ndarray, images: int) -> tuple[str, ...]:
    column = array.reshape(-1) if array.ndim == 2 and 1 in array.shape else array
    if column.shape != (images,):
        raise ValueError(
            f"{path}: expected {name!r} as {images} groups, one for each image in the order of the images, got shape "
            f"{array.shape}; leave an entry empty where the group of an image is not known"
        )
    if column.dtype.kind == "f" and not bool((np.isnan(column) | (column == np.round(column))).all()):
        raise ValueError(
            f"{path}: expected {name!r} as groups, got fractions, which would make a group of almost each image; bin "
            "them first: numpy.digitize(values, edges)"
        )
    if column.dtype.kind not in "USiubf":
        raise ValueError(f"{path}: expected {name!r} as text or whole numbers, got {column.dtype}")
    return tuple(_short(f"{path}: {name!r}", _text(value)) for value in column.tolist())


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace").strip()
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.0f}"
    return str(value).strip()


def _short(where: str, group: str) -> str:
    if len(group) > _LONGEST:
        raise ValueError(
            f"{where}: expected names of groups of at most {_LONGEST} characters, got one of {len(group)} that begins "
            f"with {group[:20]!r}"
        )
    return group


def columns_of_folder(folder: Path, pictures: Iterable[Path]) -> dict[str, tuple[str, ...]]:
    """The columns of a folder's ``groups.csv``; none where there is no such table.

    Its first line has the names: ``file``, and one for each column. Each further line is of one picture, by its path
    below the folder.

    Args:
        folder: That the table lies in.
        pictures: Below the folder, in the order of the images.

    Raises:
        ValueError: If a picture has no line or several, a line is of no picture, or it is no such table.
    """
    table = folder / TABLE_NAME
    if not table.is_file():
        return {}
    columns, lines = _read(table)
    names = [path.relative_to(folder).as_posix() for path in pictures]
    if strangers := sorted(lines.keys() - set(names)):
        raise ValueError(
            f"{table} has {_so_many(len(strangers), 'line')} of no picture, such as {strangers[0]!r}; expected the "
            f"paths of the pictures below {folder}, such as {names[0] if names else 'CLASS/1.png'!r}"
        )
    if missing := [name for name in names if name not in lines]:
        raise ValueError(
            f"{table} has no line of {_so_many(len(missing), 'picture')}, such as {missing[0]!r}; give each picture a "
            "line, with an empty cell where its group is not known"
        )
    return {column: tuple(lines[name][place] for name in names) for place, column in enumerate(columns)}


def _read(table: Path) -> tuple[list[str], dict[str, list[str]]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{table} cannot be read as a table ({error}); expected UTF-8 text with commas between the cells"
        ) from error
    head = rows[0] if rows else []
    columns = head[1:]
    if head[:1] != [_FILE] or not columns or "" in columns or len(set(columns)) < len(columns):
        raise ValueError(
            f"{table}: expected a first line of {_FILE!r} and the different names of the group columns between commas, "
            f"such as file,sex,site; got {','.join(head) or 'nothing'!r}"
        )
    lines: dict[str, list[str]] = {}
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(head):
            raise ValueError(f"{table}: expected {len(head)} cells in each line, got {len(row)} in line {number}")
        name = PurePosixPath(row[0].replace("\\", "/")).as_posix()
        if name in lines:
            raise ValueError(f"{table} has two lines of {name!r}; expected one for each picture")
        lines[name] = [_short(f"{table}, line {number}", cell) for cell in row[1:]]
    return columns, lines


def _so_many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
