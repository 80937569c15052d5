"""Writing a tape; trouble with the disk is logged once and counted, and never reaches the federation."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save

from fl_precode.private_file import sync_folder, write_private
from fl_precode.tape.format import HEADER, MANIFEST, OBSERVATIONS, PARAMETERS, TapeHeader, header_to_json

_log = logging.getLogger(__name__)

_DTYPES = frozenset(
    ("bool", "float16", "bfloat16", "float32", "float64")
    + tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
)
_REASON_LENGTH = 2000  # characters kept of a client's own error text


class TapeWriter:
    """Appends rounds, observations and failures to a new tape.

    Args:
        path: Folder of the tape; created with mode 0700, parents with it. It must be absent or empty.
        header: Public knowledge about the federation.

    Attributes:
        path: Absolute folder of the tape.
        header: As given.
        lost: Entries that could not be written.
        bytes: Size of all that was written, in bytes.

    Raises:
        ValueError: If the folder holds a tape or anything else already. Trouble with the disk does not raise: it is
            logged once, and every entry counts as lost.
    """

    def __init__(self, path: str | Path, header: TapeHeader) -> None:
        self.path = Path(path).absolute()
        self.header = header
        self.lost = 0
        self.bytes = 0
        self._names: set[str] = set()
        self._torn = False
        self._logged = False
        content = header_to_json(header)
        self._open = self._create(content)

    @property
    def place(self) -> str:
        """Place of the tape."""
        return str(self.path)

    def flush(self, patience: float | None = None) -> bool:
        """Wait until everything that was written is where the tape is to be found; returns whether it is.

        Args:
            patience: Seconds at most; None for as long as the end of a run may take.
        """
        return True

    def write_round(self, round: int, arrays: Mapping[str, np.ndarray]) -> bool:
        """Store what the server sends to every client in a round; call it once a round, before the observations.

        Returns:
            Whether it is safely on the tape.
        """
        return self.write_sent(round, {"": arrays}) is not None

    def write_sent(self, round: int, records: Mapping[str, Mapping[str, np.ndarray]]) -> str | None:
        """Store what the server sends to some or all clients in a round, before their observations.

        Args:
            round: Round of the federation.
            records: Name of each ArrayRecord to its arrays; the weights first.

        Returns:
            The file that stands for it in `write_observation`; None when it is not safely on the tape.
        """
        return self._store("round", PARAMETERS, f"round-{round:04d}", records, {"round": round})

    def write_observation(
        self,
        round: int,
        node: str,
        arrays: Mapping[str, np.ndarray],
        *,
        batch_size: int | None,
        buffers: Collection[str],
        **more: Any,
    ) -> bool:
        """Store what a client replied: its gradient or its weights, as the header says.

        Args:
            round: Round of the federation.
            node: Flower's node id; any text is safe.
            arrays: By name.
            batch_size: Distinct images behind the update, where that was announced; None leaves it to the reader.
            buffers: Names of the arrays that are no parameters.
            more: As for `write_reply`.

        Returns:
            Whether it is safely on the tape.
        """
        return self.write_reply(round, node, {"": arrays}, batch_size=batch_size, buffers=sorted(buffers), **more)

    def write_reply(self, round: int, node: str, records: Mapping[str, Mapping[str, np.ndarray]], **about: Any) -> bool:
        """Store what a client replied, as it was said.

        Args:
            round: Round of the federation.
            node: Flower's node id; any text is safe.
            records: Name of each ArrayRecord to its arrays; the weights first.
            about: Other fields of `fl_precode.tape.format.TapeEntry`; ``sent`` is what `write_sent` returned.

        Returns:
            Whether it is safely on the tape.
        """
        line = {"round": round, "node": node, "batch_size": None, "buffers": [], **about}
        stem = f"round-{round:04d}-node-{_file_part(node)}"
        return self._store("observation", OBSERVATIONS, stem, records, line) is not None

    def write_evaluation(self, round: int, *, replies: int, failed: int) -> bool:
        """Note a round's evaluation by clients; returns whether the note is safely on the tape."""
        try:
            self._append({"type": "evaluation", "round": round, "replies": replies, "failed": failed})
        except OSError as error:
            return self._lose(error)
        return True

    def write_sampling(self, round: int, *, seen: int, kept: int, by: str) -> bool:
        """Note how many updates came in and how many of them are kept; returns whether the note is on the tape.

        Args:
            round: Round of the federation.
            seen: Updates that came in together.
            kept: Those that are to be written.
            by: What chose them, as a spec of `fl_precode.tape.sampling.Sampling`.
        """
        try:
            self._append({"type": "sampling", "round": round, "seen": seen, "kept": kept, "by": by})
        except OSError as error:
            return self._lose(error)
        return True

    def write_failure(self, round: int, node: str, reason: str) -> bool:
        """Note a client without a usable reply; returns whether the note is safely on the tape."""
        try:
            self._append_failure(round, node, reason)
        except OSError as error:
            return self._lose(error)
        return True

    def _create(self, header: bytes) -> bool:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _make_private_folder(self.path, exist_ok=True)
            if any(self.path.iterdir()):
                holds = "holds a tape" if (self.path / HEADER).exists() else "is not empty"
                raise ValueError(f"{self.path} {holds} already; choose a new folder, a tape is never written over")
            self._claim()
            self.path.chmod(0o700)  # it may have been there, empty and open to others
            for name in (PARAMETERS, OBSERVATIONS):
                _make_private_folder(self.path / name)
            write_private(self.path / HEADER, header)
            sync_folder(self.path.parent)
        except OSError as error:
            self._warn(error)
            return False
        return True

    def _claim(self) -> None:
        """Create the manifest, before anything else: of writers that start at once on one folder, only one can."""
        try:
            descriptor = os.open(self.path / MANIFEST, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as error:
            raise ValueError(f"{self.path} is being taken by another tape right now; choose a new folder") from error
        try:
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)

    def _store(
        self,
        kind: str,
        folder: str,
        stem: str,
        records: Mapping[str, Mapping[str, np.ndarray]],
        about: dict[str, Any],
    ) -> str | None:
        try:
            contents = {name: _serialise(arrays) for name, arrays in records.items()}
        except (TypeError, ValueError, SafetensorError) as error:
            with suppress(OSError):
                self._append_failure(about["round"], about.get("node", ""), f"not recorded: {error}")
            self._lose(error)
            return None
        stored: list[dict[str, Any]] = []
        try:
            for name, content in contents.items():
                file = f"{folder}/{self._unused(f'{folder}/{stem}')}.safetensors"
                stored.append(content.line(file, name))
                write_private(self._folder() / file, content.bytes)
                self.bytes += len(content.bytes)
            first, *extras = stored
            line = {"type": kind, **about, "kind": self.header.kind, **first}
            self._append({**line, "extras": extras} if extras else line)
        except OSError as error:
            for one in stored:
                with suppress(OSError):  # an unlisted file only fills the disk further
                    (self.path / one["file"]).unlink()
            self._lose(error)
            return None
        return str(stored[0]["file"])

    def _folder(self) -> Path:
        if not self._open:
            raise OSError(errno.ENOENT, "the tape could not be created")
        return self.path

    def _unused(self, stem: str) -> str:
        """The stem's last part, with a number when this tape has it already (a client that replies twice)."""
        # Case folded: some file systems do not tell upper from lower case.
        name, count = stem, 1
        while name.lower() in self._names:
            count += 1
            name = f"{stem}_{count}"
        self._names.add(name.lower())
        return name.partition("/")[2]

    def _append_failure(self, round: int, node: str, reason: str) -> None:
        self._append({"type": "failure", "round": round, "node": node, "reason": reason[:_REASON_LENGTH]})

    def _append(self, line: Mapping[str, Any]) -> None:
        stamped = {**line, "time": datetime.now(UTC).isoformat(timespec="milliseconds")}
        content = (json.dumps(stamped) + "\n").encode()
        if self._torn:  # keep the next line apart from what a full disk cut off
            content = b"\n" + content
        # No O_CREAT: when somebody removed the tape, what follows is lost and not the beginning of half a tape.
        descriptor = os.open(self._folder() / MANIFEST, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
        try:
            written = os.write(descriptor, content)
            self._torn = written != len(content)
            if self._torn:
                raise OSError(errno.ENOSPC, "the line was cut off", MANIFEST)
            os.fsync(descriptor)
            self.bytes += written
        finally:
            os.close(descriptor)

    def _lose(self, error: Exception) -> bool:
        self.lost += 1
        self._warn(error)
        return False

    def _warn(self, error: Exception) -> None:
        if not self._logged:
            _log.warning(
                "an entry cannot be written to the tape %s (%s); the federation goes on, losses are counted from here",
                self.path,
                error,
            )
        self._logged = True


def _make_private_folder(folder: Path, *, exist_ok: bool = False) -> None:
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if not exist_ok or not folder.is_dir():
            raise
    else:
        folder.chmod(0o700)  # whatever the umask


def _file_part(node: str) -> str:
    """The node as part of a file name: itself when harmless, otherwise its harmless part and a hash."""
    if re.fullmatch(r"[A-Za-z0-9-]{1,40}", node):
        return node
    digest = hashlib.sha256(node.encode(errors="surrogatepass")).hexdigest()[:16]
    # The underscore keeps these apart from harmless nodes, which have none.
    return f"{re.sub(r'[^A-Za-z0-9-]', '', node)[:20]}_{digest}"


@dataclass(frozen=True)
class _Serialised:
    """The content of a tensor file, and what its line says of arrays that safetensors has no type for."""

    bytes: bytes
    complex: list[str]
    skipped: dict[str, str]

    def line(self, file: str, record: str) -> dict[str, Any]:
        """Fields of `StoredRecord`; those that say nothing are left out."""
        found: dict[str, Any] = {
            "file": file,
            "sha256": hashlib.sha256(self.bytes).hexdigest(),
            "bytes": len(self.bytes),
        }
        more = {"record": record, "complex": self.complex, "skipped": self.skipped}
        return {**found, **{key: value for key, value in more.items() if value}}


def _serialise(arrays: Mapping[str, np.ndarray]) -> _Serialised:
    """The arrays as a safetensors file; one that cannot be stored costs itself only, unless nothing else is there."""
    dense: dict[str, np.ndarray] = {}
    pairs: list[str] = []
    skipped: dict[str, str] = {}
    for name, value in arrays.items():
        # Arithmetic on 0-d arrays leaves NumPy scalars.
        array = np.asarray(value) if isinstance(value, np.ndarray | np.generic) else None
        if array is not None and array.dtype.kind == "c":
            array = np.stack([array.real, array.imag], axis=-1)
            pairs.append(name)
        if array is None or array.dtype.name not in _DTYPES:
            kind = type(value).__name__ if array is None else array.dtype
            skipped[name] = f"expected an array of numbers or booleans for {name!r}, got {kind}"
        elif name == "__metadata__":
            skipped[name] = "the array name '__metadata__' is reserved in safetensors files"
        else:
            native = array.astype(array.dtype.newbyteorder("="), copy=False)
            dense[name] = np.asarray(native, order="C")  # ascontiguousarray would turn 0-d into 1-d
    if skipped and not dense:
        raise ValueError(next(iter(skipped.values())))
    return _Serialised(save(dense), pairs, skipped)
