"""Finished cells on disk: whole or not there, readable by their owner only, and named when they were altered."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol, TypeVar

from pydantic import ValidationError
from torch import Tensor

from attacker.experiments.cells import Made, StoredFile
from attacker.jobs.store import Altered, FolderStore, checksum, read_tensors, write_tensors
from fl_precode.private_file import make_private_folder

MARKER = ".fl-precode-reproduce"

R = TypeVar("R", bound=Made)
Recipe = Mapping[str, Any]
"""Everything besides the cell itself that its result depends on."""


class Storable(Protocol):
    """A frozen dataclass that says everything about one piece of work; its values are what it is found by."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def stem(self) -> str:
        """Beginning of the file's name, for people."""

    @property
    def title(self) -> str:
        """For people."""

    @property
    def made(self) -> type[Made]:
        """What its result is."""


class CellCodec:
    """A cell's file holds the cell, its recipe and its result; see `Codec`."""

    format = "fl-precode-cell"
    version = 1

    def encode(self, result: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
        """See `Codec`; tensors of cells are kept beside them, by `Store.keep`."""
        return result, {}

    def decode(self, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Mapping[str, Any]:
        """See `Codec`."""
        return content


CELL: Final = CellCodec()


class Store:
    """Cells of experiments in one folder. A cell made with other settings is another cell, and they do not mix.

    Args:
        folder: Created, 0700.

    Attributes:
        folder: Its absolute path.
        cells: What jobs write to; the id of a job is the `name` of its cell.

    Raises:
        ValueError: If the folder holds something else.
    """

    def __init__(self, folder: Path) -> None:
        if folder.is_dir() and any(folder.iterdir()) and not (folder / MARKER).exists():
            raise ValueError(
                f"{folder} is not empty and not of an earlier experiment; name a new folder, or one that an experiment "
                "was begun in, with --out"
            )
        self.folder = make_private_folder(folder)
        (self.folder / MARKER).touch(mode=0o600)
        self.cells = FolderStore(self.folder / "cells", CELL)
        self._tensors = make_private_folder(self.folder / "tensors")

    def name(self, cell: Storable, recipe: Recipe) -> str:
        """Name of the cell's files, without a suffix."""
        return f"{re.sub(r'[^A-Za-z0-9.]+', '-', cell.stem)[:60]}-{identity(cell, recipe)}"

    def path(self, cell: Storable, recipe: Recipe) -> Path:
        """Where the cell's result is, or will be."""
        return self.cells.path(self.name(cell, recipe))

    def write(self, cell: Storable, recipe: Recipe, result: Made) -> None:
        """Keep a finished cell.

        Raises:
            OSError: If it cannot be written.
        """
        self.cells.keep(self.name(cell, recipe), content_of(cell, recipe, result))

    def read(self, cell: Storable, recipe: Recipe) -> Made | None:
        """A cell's result, or None while it is not finished.

        Raises:
            ValueError: If the file was altered or damaged; it names the file.
        """
        name = self.name(cell, recipe)
        if not self.cells.has(name):
            return None
        content = self.cells.load(name)
        if content["cell"] != json.loads(json.dumps(asdict(cell))):
            raise Altered(self.cells.path(name), "it is the result of another cell")
        try:
            return cell.made.model_validate(content["result"])
        except ValidationError as error:
            raise Altered(self.cells.path(name), str(error.errors()[0]["msg"])) from None

    def result(self, cell: Storable, recipe: Recipe, kind: type[R]) -> R:
        """The result of a cell that others of its kind depend on.

        Raises:
            ValueError: If it was altered, or is not there.
        """
        made = self.read(cell, recipe)
        if not isinstance(made, kind):
            raise ValueError(f"{self.path(cell, recipe)} is missing; run the same command again to have it made")
        return made

    def keep(self, name: str, tensors: Mapping[str, Tensor]) -> StoredFile:
        """Keep tensors beside the cells.

        Raises:
            OSError: If they cannot be written.
        """
        file = f"{name}.safetensors"
        return StoredFile(name=file, sha256=write_tensors(self._tensors / file, tensors))

    def load(self, file: StoredFile) -> dict[str, Tensor]:
        """Tensors that were kept, on the CPU.

        Raises:
            ValueError: If the file is missing or was altered; it names the file.
        """
        try:
            return read_tensors(self._tensors / file.name, file.sha256)
        except Altered as error:
            raise ValueError(
                f"{error.what}; remove it and the cells in {self.cells.folder}, and the same command makes them again"
            ) from None


def content_of(cell: Storable, recipe: Recipe, result: Made) -> dict[str, Any]:
    """What is kept of a finished cell."""
    return {"cell": asdict(cell), "recipe": dict(recipe), "result": result.model_dump(mode="json")}


def identity(cell: Storable, recipe: Recipe) -> str:
    """Short name of a cell made by a recipe: other settings, another name."""
    return checksum({"cell": asdict(cell), "recipe": dict(recipe)})[:16]
