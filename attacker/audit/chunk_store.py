"""Finished chunks: in memory, or on the disk, where each is whole or not there and an altered one is named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, Protocol

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from attacker.attacks.attack import Outcome, Reconstruction
from attacker.audit.checksum import checksum
from attacker.audit.files import make_private_folder
from fl_precode.private_file import write_private

FORMAT: Final = "fl-precode-chunk"
VERSION: Final = 1


class ChunkStore(Protocol):
    """Where results of chunks are kept."""

    def has(self, name: str) -> bool:
        """Whether the chunk of this id is finished."""

    def keep(self, name: str, found: Sequence[Reconstruction]) -> None:
        """Keep the results of a chunk."""

    def load(self, name: str) -> list[Reconstruction]:
        """Results of a finished chunk."""


class MemoryChunks:
    """Chunks of an audit that is not to outlive its process."""

    def __init__(self) -> None:
        self._found: dict[str, list[Reconstruction]] = {}

    def has(self, name: str) -> bool:
        """See `ChunkStore`."""
        return name in self._found

    def keep(self, name: str, found: Sequence[Reconstruction]) -> None:
        """See `ChunkStore`."""
        self._found[name] = list(found)

    def load(self, name: str) -> list[Reconstruction]:
        """See `ChunkStore`."""
        return self._found[name]


class ChunkFolder:
    """Chunks as files: tensors as safetensors, then a JSON file with the rest and their checksum, which makes it count.

    Args:
        folder: Created, 0700.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = make_private_folder(folder)

    def has(self, name: str) -> bool:
        """Whether the chunk is finished; a killed process leaves at most tensors that do not count."""
        return (self.folder / f"{name}.json").exists()

    def keep(self, name: str, found: Sequence[Reconstruction]) -> None:
        """Write a finished chunk.

        Raises:
            OSError: If it cannot be written, as on a full disk; the chunk does not count then.
        """
        tensors: dict[str, Tensor] = {}
        rows = [_row(one, str(number), tensors) for number, one in enumerate(found)]
        content = save_tensors(tensors)
        write_private(self.folder / f"{name}.safetensors", content)
        about = {"format": FORMAT, "version": VERSION, "tensors": hashlib.sha256(content).hexdigest(), "results": rows}
        write_private(self.folder / f"{name}.json", json.dumps(about | {"sha256": checksum(about)}).encode())

    def load(self, name: str) -> list[Reconstruction]:
        """Results of a finished chunk, tensors on the CPU.

        Raises:
            ValueError: If a file was altered or is missing; it is named, with what to do.
        """
        path = self.folder / f"{name}.json"
        try:
            about: dict[str, Any] = json.loads(path.read_bytes())
            content = (self.folder / f"{name}.safetensors").read_bytes()
        except (OSError, ValueError) as error:
            raise _altered(path, str(error)) from None
        if not isinstance(about, dict) or about.pop("sha256", None) != checksum(about):
            raise _altered(path, "its checksum does not fit its content")
        if (about["format"], about["version"]) != (FORMAT, VERSION):
            raise _altered(path, "it is of another format or version")
        if hashlib.sha256(content).hexdigest() != about["tensors"]:
            raise _altered(path, "the tensors beside it are not those that it names")
        tensors = load_tensors(content)
        return [_reconstruction(row, str(number), tensors) for number, row in enumerate(about["results"])]

    def sweep(self) -> None:
        """Remove what killed processes were writing; only while no other process writes here."""
        for path in self.folder.glob(".*.part"):
            path.unlink(missing_ok=True)


def _row(found: Reconstruction, place: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Everything in a reconstruction that is no tensor; tensors go to ``tensors``."""
    row: dict[str, Any] = {}
    for one in fields(Reconstruction):
        value = getattr(found, one.name)
        if isinstance(value, Tensor):
            tensors[f"{place}.{one.name}"] = value.detach().cpu().contiguous()
        elif isinstance(value, tuple):
            for number, part in enumerate(value):
                tensors[f"{place}.{one.name}.{number}"] = part.detach().cpu().contiguous()
            row[one.name] = len(value)
        else:
            row[one.name] = value.name if isinstance(value, Outcome) else value
    return row


def _reconstruction(row: dict[str, Any], place: str, tensors: dict[str, Tensor]) -> Reconstruction:
    values: dict[str, Any] = {**row, "outcome": Outcome[row["outcome"]]}
    values["noise"] = tuple(tensors[f"{place}.noise.{number}"] for number in range(row["noise"]))
    values |= {name: tensors.get(f"{place}.{name}") for name in ("inputs", "labels")}
    return Reconstruction(**values)


def _altered(path: Path, why: str) -> ValueError:
    return ValueError(f"{path} was altered or damaged: {why}; remove it, and the same command attacks these again")
