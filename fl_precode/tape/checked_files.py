"""Files that were read and found to be what a tape lists: read and checked once, however often they are wanted."""

from __future__ import annotations

import os
import threading
import time
from typing import Final

MOST_BYTES: Final = 512 << 20
"""Bytes that are kept unless another number is given: eight updates of a ResNet-18 with the weights before them."""

_SETTLED_NS: Final = 2_000_000_000
"""Nanoseconds after which a file's time of change tells any later change from it."""


class CheckedFiles:
    """Contents of files by their SHA-256. Who asks gets bytes, so that nobody can alter what others get.

    Args:
        most_bytes: Kept at most; a file for which there is no room is read again each time. Its SHA-256 is not computed
            again while the file system says that it is the same file, unchanged.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most = most_bytes
        self._contents: dict[str, bytes] = {}
        self._size = 0
        self._unchanged: dict[str, tuple[int, ...]] = {}
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return self._size

    def get(self, sha256: str) -> bytes | None:
        """The file with this SHA-256, or None where it is not kept."""
        return self._contents.get(sha256)

    def recognises(self, sha256: str, status: os.stat_result) -> bool:
        """Whether a file is the one whose SHA-256 was computed, and was not written since."""
        return self._unchanged.get(sha256) == _state(status)

    def keep(self, sha256: str, content: bytes, status: os.stat_result) -> None:
        """Keep a file whose SHA-256 was computed, if there is room; else remember which it is."""
        with self._lock:
            # One that was written a moment ago may be written again within the file system's unit of time.
            if time.time_ns() - status.st_ctime_ns > _SETTLED_NS:
                self._unchanged[sha256] = _state(status)
            if sha256 not in self._contents and self._size + len(content) <= self._most:
                self._contents[sha256] = content
                self._size += len(content)

    def clear(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._contents, self._size, self._unchanged = {}, 0, {}


def _state(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
