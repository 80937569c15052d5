"""Pictures of the audit as data URIs, within a budget, so that the page stays one file of bounded size."""

from __future__ import annotations

import base64
import logging
from pathlib import Path

_logger = logging.getLogger(__name__)
_PNG = b"\x89PNG\r\n\x1a\n"
BUDGET_BYTES = 3_300_000
"""Of PNG data in one page; base64 makes it a third more, and the page stays under 5 MB."""


class Embedder:
    """Reads pictures that the record names.

    Args:
        folder: The folder of ``audit.json``.
        budget: Bytes of PNG data that may still be embedded.

    Attributes:
        problems: Pictures that are missing or no PNG, one sentence each.
    """

    def __init__(self, folder: Path, budget: int = BUDGET_BYTES) -> None:
        self._folder = folder
        self.budget = budget
        self.problems: list[str] = []

    def data_uri(self, path: str | None) -> str | None:
        """The picture as a ``data:`` URI, or None when there is none or it cannot be read."""
        if path is None:
            return None
        try:
            content = (self._folder / path).read_bytes()
        except OSError as error:
            self._problem(f"{path}: cannot be read ({error.strerror})")
            return None
        if not content.startswith(_PNG):
            self._problem(f"{path}: is no PNG file")
            return None
        self.budget -= len(content)
        return f"data:image/png;base64,{base64.b64encode(content).decode()}"

    def _problem(self, text: str) -> None:
        _logger.warning("picture %s", text)
        self.problems.append(text)
