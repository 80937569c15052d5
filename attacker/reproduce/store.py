"""Finished cells on disk: whole or not there, readable by their owner only, and named when they were altered."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from pydantic import ValidationError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from attacker.jobs.store import checksum
from attacker.reproduce.cells import Made, StoredFile
from fl_precode.private_file import make_private_folder, write_private

MARKER = ".fl-precode-reproduce"
FORMAT, VERSION = "fl-precode-cell", 1

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
    def made(self) -> type[Made]:
        """What its result is."""


class Store:
    """Cells of experiments in one folder. A cell made with other settings is another cell, and they do not mix.

    Args:
        folder: Created, 0700.

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
        self._cells = make_private_folder(self.folder / "cells")
        self._tensors = make_private_folder(self.folder / "tensors")

    def path(self, cell: Storable, recipe: Recipe) -> Path:
        """Where the cell's result is, or will be."""
        return self._cells / f"{re.sub(r'[^A-Za-z0-9.]+', '-', cell.stem)[:60]}-{identity(cell, recipe)}.json"

    def write(self, cell: Storable, recipe: Recipe, result: Made) -> None:
        """Keep a finished cell.

        Raises:
            OSError: If it cannot be written.
        """
        content = {
            "format": FORMAT,
            "version": VERSION,
            "cell": asdict(cell),
            "recipe": dict(recipe),
            "result": result.model_dump(mode="json"),
        }
        content["sha256"] = checksum(content)
        write_private(self.path(cell, recipe), (json.dumps(content, indent=1) + "\n").encode())

    def read(self, cell: Storable, recipe: Recipe) -> Made | None:
        """A cell's result, or None while it is not finished.

        Raises:
            ValueError: If the file was altered or damaged; it names the file.
        """
        path = self.path(cell, recipe)
        try:
            content = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise _altered(path, f"it is no JSON ({error})") from None
        if not isinstance(content, dict) or content.pop("sha256", None) != checksum(content):
            raise _altered(path, "its checksum does not fit its content")
        if content.get("format") != FORMAT or content.get("version") != VERSION:
            raise _altered(path, "it is of another format or version")
        if content["cell"] != json.loads(json.dumps(asdict(cell))):
            raise _altered(path, "it is the result of another cell")
        try:
            return cell.made.model_validate(content["result"])
        except ValidationError as error:
            raise _altered(path, str(error.errors()[0]["msg"])) from None

    def result(self, cell: Storable, recipe: Recipe, kind: type[R]) -> R:
        """The result of a cell that others of its kind depend on.

        Raises:
            ValueError: If it was altered, or is not there.
        """
        found = self.read(cell, recipe)
        if not isinstance(found, kind):
            raise ValueError(f"{self.path(cell, recipe)} is missing; run the same command again to have it made")
        return found

    def keep(self, name: str, tensors: Mapping[str, Tensor]) -> StoredFile:
        """Keep tensors beside the cells.

        Raises:
            OSError: If they cannot be written.
        """
        content = save_tensors({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
        write_private(self._tensors / f"{name}.safetensors", content)
        return StoredFile(name=f"{name}.safetensors", sha256=hashlib.sha256(content).hexdigest())

    def load(self, file: StoredFile) -> dict[str, Tensor]:
        """Tensors that were kept, on the CPU.

        Raises:
            ValueError: If the file is missing or was altered; it names the file.
        """
        path = self._tensors / file.name
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise ValueError(
                f"{path} is missing, and finished cells need it; remove the folder {self._cells} to begin anew"
            ) from None
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise _altered(path, "its checksum is not the one that its cell names", also=self._cells)
        return load_tensors(content)


def identity(cell: Storable, recipe: Recipe) -> str:
    """Short name of a cell made by a recipe: other settings, another name."""
    return checksum({"cell": asdict(cell), "recipe": dict(recipe)})[:16]


def _altered(path: Path, why: str, *, also: Path | None = None) -> ValueError:
    advice = "remove it, and the same command makes it again" if also is None else f"remove it and the cells in {also}"
    return ValueError(f"{path} was altered or damaged: {why}; {advice}")
