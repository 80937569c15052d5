"""Files that were read and found to be what a tape lists: read and checked once, however often they are wanted."""

from __future__ import annotations

import threading
from typing import Final

MOST_BYTES: Final = 512 << 20
"""Bytes that are kept unless another number is given: eight updates of a ResNet-18 with the weights before them."""


class CheckedFiles:
    """Contents of files by their SHA-256. Who asks gets bytes, so that nobody can alter what others get.

    Args:
        most_bytes: Kept at most; a file for which there is no room is read again each time.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most = most_bytes
        self._contents: dict[str, bytes] = {}
        self._size = 0
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return self._size

    def get(self, sha256: str) -> bytes | None:
        """The file with this SHA-256, or None where it is not kept."""
        return self._contents.get(sha256)

    def keep(self, sha256: str, content: bytes) -> None:
        """Keep a file whose SHA-256 was computed, if there is room."""
        with self._lock:
            if sha256 not in self._contents and self._size + len(content) <= self._most:
                self._contents[sha256] = content
                self._size += len(content)

    def clear(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._contents, self._size = {}, 0
