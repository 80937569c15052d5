"""Reading a tape, while it is written or after it was damaged: what is wrong is named, the rest is read."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor

from fl_precode.assumption import Assumption
from fl_precode.models.layout import ModelLayout
from fl_precode.observation import Observation
from fl_precode.places.object_store import url_of
from fl_precode.tape.checked_files import CheckedFiles
from fl_precode.tape.format import (
    HEADER,
    MANIFEST,
    PARAMETERS,
    SentIndex,
    StoredRecord,
    TapeEntry,
    TapeError,
    TapeEvaluation,
    TapeFailure,
    TapeHeader,
    TapeSampling,
    header_from_json,
    line_from_json,
)
from fl_precode.tape.interpretation import Interpretation

_HEADER_LIMIT = 1 << 20  # bytes; a header is a few hundred

_TORN_RETRIES = 5
_TORN_WAIT_SECONDS = 0.02


class Tape:
    """A tape as it stands in its folder; `refresh` sees what was appended since.

    Args:
        path: Folder of the tape.
        checked: Where updates are kept once they were read and checked, also for other readers of the same tape; None
            reads them again each time.

    Attributes:
        path: Folder of the tape.
        header: Public knowledge about the federation.
        entries: Every observation listed, in the order of arrival; nothing is loaded yet.
        failures: Clients without a usable reply.
        evaluations: Rounds in which clients evaluated.
        samplings: How many updates came in and how many were kept; empty where all were.
        layout: The model's tensors, where the model is known: decides which arrays are which of them.
        assumptions: What was guessed about the whole tape; becomes part of every observation.
        problems: What is damaged, one sentence each, beginning with the file. Lengths are checked at once, contents
            when they are loaded or by `verify`.

    Raises:
        TapeError: If the folder is no tape, its header is damaged, or its format is newer than this version.
    """

    def __init__(self, path: str | Path, *, checked: CheckedFiles | None = None) -> None:
        self.path = Path(path)
        self._checked = checked
        self.header: TapeHeader = self._read_header()
        self.entries: list[TapeEntry] = []
        self.failures: list[TapeFailure] = []
        self.evaluations: list[TapeEvaluation] = []
        self.samplings: list[TapeSampling] = []
        self.layout: ModelLayout | None = None
        self.assumptions: tuple[Assumption, ...] = ()
        self._sizes: dict[str, int | None] = {}
        self.problems: list[str] = []
        self._rounds: list[TapeEntry] = []
        self._loaded: tuple[StoredRecord, Mapping[str, Tensor]] | None = None
        self.refresh()

    def refresh(self) -> None:
        """Read the manifest again; a tape may be followed while it is written."""
        entries: list[TapeEntry] = []
        rounds: list[TapeEntry] = []
        failures: list[TapeFailure] = []
        evaluations: list[TapeEvaluation] = []
        samplings: list[TapeSampling] = []
        sent = SentIndex()
        self.problems = []
        for number, line in self._lines():
            try:
                kind, content = line_from_json(line, sent)
            except (ValueError, RecursionError) as error:
                self._note(f"{MANIFEST}: line {number} cannot be read ({error}); what it listed is passed over")
                continue
            if isinstance(content, TapeFailure):
                failures.append(content)
            elif isinstance(content, TapeEvaluation):
                evaluations.append(content)
            elif isinstance(content, TapeSampling):
                samplings.append(content)
            elif kind == "round":
                sent.add(content)
                rounds.append(content)
            else:
                entries.append(content)
            if isinstance(content, TapeEntry):
                for one in (content, *content.extras):
                    self._check_length(one)
        self.entries, self._rounds, self.failures = entries, rounds, failures
        self.evaluations, self.samplings = evaluations, samplings

    def observations(
        self, rounds: Collection[int] | None = None, nodes: Collection[str] | None = None
    ) -> list[Observation]:
        """Load the observations of some rounds and nodes, or all; unreadable ones are left out, and in `problems`."""
        found = []
        for entry in self.entries:
            if (rounds is None or entry.round in rounds) and (nodes is None or entry.node in nodes):
                try:
                    found.append(self.load(entry))
                except TapeError:
                    continue
        return found

    def load(self, entry: TapeEntry) -> Observation:
        """Load one observation, its file checked against the manifest's SHA-256.

        Raises:
            TapeError: If a file is missing, altered or no safetensors, or the reply does not fit what was sent; the
                same sentence is in `problems` then.
        """
        return self._load(entry, keep=True)

    def _load(self, entry: TapeEntry, *, keep: bool) -> Observation:
        read = Interpretation(header=self.header, layout=self.layout, assumptions=self.assumptions)
        try:
            found = read.observation(entry, partial(self._record, keep=keep))
            self._sizes[entry.file] = found.batch_size
            return found
        except TapeError as error:
            self._note(str(error))
            raise

    def batch_size(self, entry: TapeEntry) -> int | None:
        """Distinct images behind an update, as `load` finds; None where that is not known or it cannot be read."""
        if entry.file not in self._sizes:
            with suppress(TapeError):
                self.load(entry)
        return self._sizes.get(entry.file)

    def first_sent(self) -> Mapping[str, Tensor]:
        """The weights that were sent first, as they were recorded; empty where there are none to read."""
        for entry in self._rounds:
            with suppress(TapeError):
                return self._record(entry)
        return {}

    @property
    def rounds(self) -> set[int]:
        """Rounds in which the server sent something to train on."""
        return {entry.round for entry in self._rounds}

    @property
    def updates_seen(self) -> int:
        """Updates that the server received in the clear, those that were not kept included."""
        # Notes can be lost to a full disk, and updates are never more than were seen.
        return max(sum(one.seen for one in self.samplings), len(self.entries))

    @property
    def sampled_by(self) -> str:
        """Sampling by which the kept updates were chosen, as a spec; empty where all were kept."""
        return ", ".join(sorted({one.by for one in self.samplings}))

    def verify(self) -> list[str]:
        """Load everything listed once, one update at a time, and return all `problems`.

        What was read and checked before is not read again where the tape keeps it, and nothing more is kept.
        """
        for entry in self.entries:
            with suppress(TapeError):
                self._load(entry, keep=False)
        used = {entry.sent.file for entry in self.entries if entry.sent is not None}
        unread = [entry for entry in self._rounds if entry.file not in used]
        extras = [one for entry in (*self.entries, *self._rounds) for one in entry.extras]
        for one in (*unread, *extras):
            try:
                self._tensors(one, keep=False)
            except TapeError as error:
                self._note(str(error))
        return list(self.problems)

    def fingerprint(self, manifest_bytes: int | None = None) -> tuple[str, int]:
        """Fingerprint of this tape: SHA-256 of its header and manifest, which lists the hash of every file.

        Args:
            manifest_bytes: How much of the manifest counts, because a tape may have grown since; None for all of it.

        Returns:
            The hash in hexadecimal digits, and the bytes of the manifest that it covers.

        Raises:
            TapeError: If header or manifest cannot be read.
        """
        try:
            header, manifest = (_read_inside(self.path, name) for name in (HEADER, MANIFEST))
        except OSError as error:
            raise TapeError(f"{self.path} cannot be read: {error.strerror}") from error
        counted = manifest if manifest_bytes is None else manifest[:manifest_bytes]
        return hashlib.sha256(header + counted).hexdigest(), len(counted)

    def _note(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)

    def _read_header(self) -> TapeHeader:
        file = str(self.path / HEADER)
        if url := url_of(self.path):
            raise TapeError(f"{url} is in an object store; read its copy, fl_precode.tape.fetched.local_tape({url!r})")
        if not self.path.is_dir():
            raise TapeError(f"{self.path} is not a folder; expected the folder of a tape, as the interceptor writes it")
        try:
            content = _read_inside(self.path, HEADER, limit=_HEADER_LIMIT)
        except FileNotFoundError as error:
            raise TapeError(f"{file} is missing; this folder is no tape, or its header was removed") from error
        except OSError as error:
            raise TapeError(f"{file} cannot be read: {error.strerror}") from error
        return header_from_json(content, file)

    def _lines(self) -> list[tuple[int, bytes]]:
        try:
            content = _read_inside(self.path, MANIFEST)
            for _ in range(_TORN_RETRIES):
                # A line that is being appended at this moment can be seen in part, and is whole a moment later.
                if not content or content.endswith(b"\n"):
                    break
                time.sleep(_TORN_WAIT_SECONDS)
                content = _read_inside(self.path, MANIFEST)
        except OSError as error:
            self._note(f"{MANIFEST}: cannot be read ({error.strerror}); nothing on this tape is listed")
            return []
        *lines, rest = content.split(b"\n")
        if rest:
            self._note(f"{MANIFEST}: the last line is torn; it is still being written, or its writer was stopped")
        return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]

    def _check_length(self, entry: StoredRecord) -> None:
        try:
            found = os.lstat(self.path / entry.file)
        except OSError as error:
            self._note(f"{entry.file}: cannot be read ({error.strerror})")
            return
        if not stat.S_ISREG(found.st_mode):
            self._note(f"{entry.file}: is not a regular file; refused")
        elif found.st_size != entry.bytes:
            self._note(_wrong_length(entry, found.st_size))

    def _tensors(self, entry: StoredRecord, *, keep: bool = True) -> Mapping[str, Tensor]:
        content = self._content(entry, keep=keep)
        try:
            tensors: dict[str, Tensor] = load(content)
            tensors |= {name: torch.view_as_complex(tensors[name]) for name in entry.complex}
        except Exception as error:
            raise TapeError(f"{entry.file}: is no safetensors file ({error})") from error
        # Their order in the file is not kept and another in every process, and sums over them are rounded by it.
        return dict(sorted(tensors.items()))

    def _content(self, entry: StoredRecord, *, keep: bool) -> bytes:
        """The file of a stored record, which was read and checked before or is now."""
        known = None if self._checked is None else self._checked.get(entry.sha256)
        if known is not None and len(known) == entry.bytes:
            return known
        try:
            content, status = _read_with_status(self.path, entry.file, limit=entry.bytes)
        except OSError as error:
            raise TapeError(f"{entry.file}: cannot be read ({error.strerror})") from error
        if len(content) != entry.bytes:
            raise TapeError(_wrong_length(entry, len(content)))
        recognised = self._checked is not None and self._checked.recognises(entry.sha256, status)
        if not recognised and hashlib.sha256(content).hexdigest() != entry.sha256:
            raise TapeError(f"{entry.file}: was altered, its SHA-256 is not the one that the manifest lists")
        if keep and self._checked is not None:
            self._checked.keep(entry.sha256, content, status)
        return content

    def _record(self, entry: StoredRecord, *, keep: bool = True) -> Mapping[str, Tensor]:
        """A stored record; what was sent is read once for all clients that got it."""
        if not entry.file.startswith(f"{PARAMETERS}/"):
            return self._tensors(entry, keep=keep)
        if self._loaded is None or self._loaded[0] != entry:
            self._loaded = (entry, self._tensors(entry, keep=keep))
        return self._loaded[1]


def _wrong_length(entry: StoredRecord, found: int) -> str:
    return f"{entry.file}: has {found} bytes where the manifest lists {entry.bytes}; it was cut off or altered"


def _read_inside(folder: Path, file: str, *, limit: int | None = None) -> bytes:
    """Read a regular file of the tape, as `_read_with_status` does."""
    return _read_with_status(folder, file, limit=limit)[0]


def _read_with_status(folder: Path, file: str, *, limit: int | None = None) -> tuple[bytes, os.stat_result]:
    """Read a regular file of the tape without following links inside it, at most one byte more than ``limit``.

    Returns:
        The bytes, and what the file system said of the file before they were read.

    Raises:
        OSError: If it is missing, a link (ELOOP), or no regular file.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    *parents, name = file.split("/")
    try:
        for parent in parents:
            inner = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        # O_NONBLOCK: a named pipe must be refused below, not waited for.
        opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=descriptor)
    finally:
        os.close(descriptor)
    with os.fdopen(opened, "rb") as source:
        status = os.fstat(source.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "it is not a regular file")
        return source.read() if limit is None else source.read(limit + 1), status
