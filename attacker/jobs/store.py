"""Finished jobs: in memory, or on the disk, where each is whole or not there and an altered one is named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from attacker.jobs.job import Codec
from fl_precode.private_file import make_private_folder, write_private

R = TypeVar("R")


class Altered(ValueError):
    """A file of finished work that is not as it was written; the message names it and says what to do.

    Attributes:
        what: The message without what to do.
    """

    def __init__(self, path: Path, why: str) -> None:
        self.what = f"{path} was altered or damaged: {why}"
        super().__init__(f"{self.what}; remove it, and the same command makes it again")


class JobStore(Protocol[R]):
    """Where results of jobs are kept."""

    def has(self, name: str) -> bool:
        """Whether the job of this id is finished."""

    def keep(self, name: str, result: R) -> None:
        """Keep the result of a job."""

    def load(self, name: str) -> R:
        """The result of a finished job."""


class MemoryStore(Generic[R]):
    """Results that are not to outlive their process."""

    def __init__(self) -> None:
        self._found: dict[str, R] = {}

    def has(self, name: str) -> bool:
        """See `JobStore`."""
        return name in self._found

    def keep(self, name: str, result: R) -> None:
        """See `JobStore`."""
        self._found[name] = result

    def load(self, name: str) -> R:
        """See `JobStore`."""
        return self._found[name]


class FolderStore(Generic[R]):
    """Results as files: tensors as safetensors, then a JSON file with the rest and a checksum, which makes it count.

    Args:
        folder: Created, 0700.
        codec: Codec of the results.
    """

    def __init__(self, folder: Path, codec: Codec[R]) -> None:
        self.folder = make_private_folder(folder)
        self._codec = codec

    def path(self, name: str) -> Path:
        """The file that makes a job count."""
        return self.folder / f"{name}.json"

    def has(self, name: str) -> bool:
        """Whether the job is finished; a killed process leaves at most tensors that do not count."""
        return self.path(name).exists()

    def keep(self, name: str, result: R) -> None:
        """Write the result of a job.

        Raises:
            OSError: If it cannot be written, as on a full disk; the job does not count then.
        """
        content, tensors = self._codec.encode(result)
        about = {"format": self._codec.format, "version": self._codec.version, **content}
        if tensors:
            about["tensors"] = write_tensors(self._tensors(name), tensors)
        write_sealed(self.path(name), about)

    def load(self, name: str) -> R:
        """The result of a finished job, tensors on the CPU.

        Raises:
            Altered: If a file was altered or is missing.
        """
        path = self.path(name)
        about = read_sealed(path, self._codec.format, self._codec.version)
        digest = about.get("tensors")
        tensors = {} if digest is None else read_tensors(self._tensors(name), digest)
        return self._codec.decode(about, tensors)

    def sweep(self) -> None:
        """Remove what killed processes were writing; only while no other process writes here."""
        for path in self.folder.glob(".*.part"):
            path.unlink(missing_ok=True)

    def _tensors(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of what goes into a JSON file, whatever the order of its keys; what JSON does not know counts as text.

    >>> checksum({"a": 1, "b": [2]}) == checksum({"b": [2], "a": 1}) != checksum({"a": 1, "b": [3]})
    True
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file with its checksum, 0600.

    Raises:
        OSError: If it cannot be written.
    """
    write_private(path, (json.dumps({**content, "sha256": checksum(content)}, indent=1) + "\n").encode())


def read_sealed(path: Path, form: str, version: int) -> dict[str, Any]:
    """What was written to a JSON file with its checksum.

    Args:
        path: The file.
        form: Value of its ``format``.
        version: Value of its ``version``.

    Raises:
        Altered: If it was altered, is missing, or is of another format or version.
    """
    try:
        content: Any = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise Altered(path, "it is missing") from None
    except (OSError, ValueError) as error:
        raise Altered(path, str(error)) from None
    if not isinstance(content, dict) or content.pop("sha256", None) != checksum(content):
        raise Altered(path, "its checksum does not fit its content")
    if (content.get("format"), content.get("version")) != (form, version):
        actual = f"{content.get('format')} of version {content.get('version')}"
        raise Altered(path, f"it is {actual}, and this fl-precode reads {form} of version {version}")
    return content


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors as safetensors, 0600; returns the SHA-256 of the file.

    Raises:
        OSError: If they cannot be written.
    """
    content = save_tensors({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    write_private(path, content)
    return hashlib.sha256(content).hexdigest()


def read_tensors(path: Path, sha256: str) -> dict[str, Tensor]:
    """Tensors that were written, on the CPU.

    Raises:
        Altered: If the file is missing, or its SHA-256 is another one.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise Altered(path, "it is missing") from None
    except OSError as error:
        raise Altered(path, str(error)) from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise Altered(path, "its SHA-256 is not the one that was noted when it was written")
    tensors: dict[str, Tensor] = load_tensors(content)
    return tensors
