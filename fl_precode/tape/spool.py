"""A tape in an object store: written to a private folder first, and sent from there in the background."""

from __future__ import annotations

import atexit
import logging
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from fl_precode.places.cache_folder import cache_folder
from fl_precode.places.object_store import ObjectStore, path_of, url_of, without_secrets
from fl_precode.private_file import make_private_folder
from fl_precode.tape.format import HEADER, MANIFEST, TapeHeader
from fl_precode.tape.writer import TapeWriter

_log = logging.getLogger(__name__)

PATIENCE_SECONDS: Final = 60.0
"""How long the end of a run waits for a store."""
MANIFEST_SECONDS: Final = 10.0
"""Between two writings of the manifest, which an object store only takes whole."""
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_NOTES: Final = ".toml"


def tape_writer(place: str | Path, header: TapeHeader) -> TapeWriter:
    """A writer for a folder of this machine, or for the URL of an object store.

    Raises:
        ValueError: If the folder holds something already, or the store cannot be used.
    """
    url = url_of(place)
    return TapeWriter(path_of(place), header) if url is None else SpooledTapeWriter(url, header)


class SpooledTapeWriter(TapeWriter):
    """Writes a tape to a folder of its own and sends each file to an object store once it is whole.

    The store gets the same files in the same places. Tensors leave this machine when the store has them. A store that
    is away costs nothing but time in a thread of its own: it is said once and tried again, and what it never took stays
    in the folder, with the whole manifest.

    Args:
        url: URL of the tape. Where a tape is there already, a numbered place beside it is taken.
        header: Public knowledge about the federation.

    Attributes:
        path: The folder on this machine.

    Raises:
        ValueError: If the URL holds a password or the store's software is not installed.
    """

    def __init__(self, url: str, header: TapeHeader) -> None:
        store = ObjectStore(url)
        super().__init__(_new_spool() / "tape", header)
        self._uploads = _Uploads(store, self.path)
        atexit.register(self._uploads.end)

    @property
    def place(self) -> str:
        """The URL."""
        return self._uploads.url

    @property
    def unsent(self) -> int:
        """Lines of the manifest whose files the store does not have yet."""
        return self._uploads.unsent

    def flush(self, patience: float | None = None) -> bool:
        """Wait until the store has everything that was written; returns whether it has.

        Args:
            patience: Seconds at most; None for a minute.
        """
        return self._uploads.flush(PATIENCE_SECONDS if patience is None else patience)

    def _append(self, line: Mapping[str, Any]) -> None:
        super()._append(line)
        files = [one["file"] for one in (line, *line.get("extras", ())) if "file" in one]
        self._uploads.add(files, (self.path / MANIFEST).stat().st_size)


class _Uploads:
    """Sends what a writer names, in its order, in a thread that begins with the first of it.

    Args:
        store: Where to.
        folder: Where from.
    """

    def __init__(self, store: ObjectStore, folder: Path) -> None:
        self.url = store.url
        self._store = store
        self._folder = folder
        self._waiting: deque[tuple[list[str], int]] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._claimed = self._told = False
        self._urgent = False
        self._said = 0
        self._listed = self._sent = 0  # bytes of the manifest: whose files are there, and that are there themselves
        self._sent_at = 0.0

    @property
    def unsent(self) -> int:
        with self._changed:
            return len(self._waiting)

    def add(self, files: list[str], manifest_bytes: int) -> None:
        """Send files, then the manifest up to the line that names them."""
        with self._changed:
            self._waiting.append((files, manifest_bytes))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="tape uploads", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, patience: float) -> bool:
        with self._urgently():
            done = self._changed.wait_for(self._is_done, timeout=patience)
            left = len(self._waiting)
        if not done and left != self._said:
            self._said = left
            _log.warning(
                "%d entries of the tape are not in %s; what is missing is in %s: copy this folder over it, or audit it",
                left, self.url, self._folder,
            )  # fmt: skip
        return done

    def end(self) -> None:
        """At the end of the process: flush, and leave no folder behind that holds nothing more than the store."""
        if self._thread is None or self.flush(PATIENCE_SECONDS):
            shutil.rmtree(self._folder.parent, ignore_errors=True)

    @contextmanager
    def _urgently(self) -> Iterator[None]:
        with self._changed:
            self._urgent = True
            self._changed.notify_all()
            try:
                yield
            finally:
                self._urgent = False

    def _is_done(self) -> bool:
        return not self._waiting and self._sent == self._listed

    def _work(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting) or self._is_due(), timeout=MANIFEST_SECONDS)
            try:
                self._step()
                pause = _FIRST_PAUSE
            except Exception as error:  # noqa: BLE001 - stores raise what they like, and training must not notice
                self._tell(error)
                time.sleep(_FIRST_PAUSE)
                with self._changed:
                    self._changed.wait_for(lambda: self._urgent, timeout=pause - _FIRST_PAUSE)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _is_due(self) -> bool:
        waited = self._urgent or time.monotonic() - self._sent_at >= MANIFEST_SECONDS
        return waited and self._sent != self._listed

    def _step(self) -> None:
        """Send the oldest entry, or the manifest when it is time."""
        if not self._claimed:
            self._claim()
        if self._waiting:
            files, length = self._waiting[0]
            for file in files:
                self._store.put(self._folder / file, file)
            with self._changed:
                self._waiting.popleft()
                self._listed = length
            for file in files:
                with suppress(OSError):  # a private copy too many, which the end of the process removes
                    (self._folder / file).unlink()
        with self._changed:
            due, length = self._is_due() and (not self._waiting or not self._urgent), self._listed
        if due:
            self._store.write(MANIFEST, (self._folder / MANIFEST).read_bytes()[:length])
            with self._changed:
                self._sent, self._sent_at = length, time.monotonic()
                self._changed.notify_all()

    def _claim(self) -> None:
        """Take the place, or a numbered one beside it: a tape is never written over."""
        asked, number = self._store.url, 1
        content = (self._folder / HEADER).read_bytes()
        while True:
            try:
                if self._store.exists(HEADER) or self._store.exists(MANIFEST):
                    raise FileExistsError
                self._store.write(HEADER, content, mode="create")
                break
            except FileExistsError:
                number += 1
                self._store = ObjectStore(f"{asked}-{number}")
        self.url, self._claimed = self._store.url, True
        if number > 1:
            _log.warning("%s holds the tape of an earlier run; this run's tape is %s", asked, self.url)
        notes = self._folder.with_name(f"{self._folder.name}{_NOTES}")
        if notes.exists():
            self._store.put(notes, _NOTES)

    def _tell(self, error: Exception) -> None:
        if not self._told:
            _log.warning(
                "the tape cannot be sent to %s (%s); the federation goes on, it is tried again, and what was not sent "
                "is kept in %s",
                self.url, without_secrets(error), self._folder,
            )  # fmt: skip
        self._told = True


def _new_spool() -> Path:
    """A new folder, 0700, that outlives a restart of this machine where the home folder can be written."""
    try:
        parent: Path | None = make_private_folder(make_private_folder(cache_folder()) / "spool")
    except OSError:
        parent = None
    try:
        return Path(tempfile.mkdtemp(prefix="tape-", dir=parent))
    except OSError:  # the tape cannot be created there, which its writer says and counts
        return cache_folder() / "spool" / "tape"
