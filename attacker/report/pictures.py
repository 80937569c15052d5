"""Pictures of the audit as data URIs, in the most exact form that the page has room for."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image

from attacker.report.html import data_uri

_logger = logging.getLogger(__name__)
_PNG = b"\x89PNG\r\n\x1a\n"
_BLURRED_SIDE: Final = 4
"""Colours along the longer side of a redacted picture."""


@dataclass(frozen=True)
class Encoding:
    """How pictures are embedded.

    Attributes:
        words: For the reader.
        side: The longest side in pixels; larger pictures are reduced. None leaves the file as it is.
        quality: Quality of WebP, up to 100.
    """

    words: str
    side: int | None
    quality: int = 0


ENCODINGS: Final = (
    Encoding("They are exact copies of the files.", None),
    Encoding("To fit on one page they are WebP copies of quality 90, at most 256 pixels wide or high.", 256, 90),
    Encoding("To fit on one page they are WebP copies of quality 90, at most 128 pixels wide or high.", 128, 90),
    Encoding("To fit on one page they are WebP copies of quality 75, at most 64 pixels wide or high.", 64, 75),
    Encoding("To fit on one page they are coarse WebP copies (quality 40, at most 48 pixels).", 48, 40),
)
"""From the most exact to the smallest."""

WITHOUT: Final = Encoding("This copy holds no picture.", None)
"""Encoding of an album that embeds nothing."""


class Album:
    """The pictures of one page.

    Args:
        folder: The folder of ``audit.json``.
        redact: Blur every picture before it is embedded.
        empty: Embed no picture at all, not even a blurred one.

    Attributes:
        redact: Whether pictures are blurred, or left out.
        encoding: How they are embedded; `admit` chooses.
        problems: Pictures that are missing or no PNG, one sentence each.
    """

    def __init__(self, folder: Path, *, redact: bool = False, empty: bool = False) -> None:
        self._folder = folder
        self.redact = redact or empty
        self._encoded: dict[str, str | None] = {}
        self.encoding = WITHOUT if empty else ENCODINGS[0]
        self.problems: list[str] = []

    @property
    def empty(self) -> bool:
        """Whether it embeds no picture at all."""
        return self.encoding is WITHOUT

    def admit(self, paths: Iterable[str], room: int) -> int:
        """Choose the most exact encoding in which all these uses of pictures fit, and embed those that do.

        Args:
            paths: One for each use.
            room: Characters that their data URIs may take together.

        Returns:
            Characters left; pictures that do not even fit in the smallest encoding are not embedded.
        """
        if self.empty:
            return room
        wanted = list(paths)
        for encoding in ENCODINGS:
            self.encoding = encoding
            uris = {path: self._encode(path, encoding) for path in dict.fromkeys(wanted)}
            if sum(len(uris[path] or "") for path in wanted) <= room:
                break
        for path in wanted:
            room -= len(uris[path] or "")
            if room >= 0:
                self._encoded[path] = uris[path]
        return max(room, 0)

    def admit_more(self, paths: Iterable[str], room: int) -> bool:
        """Embed these too, no more exactly than the first ones, if all of them fit; whether they did."""
        if self.empty:
            return True
        wanted = list(dict.fromkeys(paths))
        for encoding in ENCODINGS[ENCODINGS.index(self.encoding) :]:
            uris = {path: self._encode(path, encoding) for path in wanted}
            if sum(len(uri or "") for uri in uris.values()) <= room:
                self._encoded |= uris
                return True
        return False

    def uri(self, path: str | None) -> str | None:
        """An admitted picture as a ``data:`` URI; None when there is none, it cannot be read or has no room."""
        return None if path is None else self._encoded.get(path)

    def _encode(self, path: str, encoding: Encoding) -> str | None:
        try:
            content = (self._folder / path).read_bytes()
            if not content.startswith(_PNG):
                return self._problem(f"{path}: is no PNG file")
            if self.redact or encoding.side is not None:
                content = self._again(content, encoding)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return self._problem(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})")
        kind = "png" if content.startswith(_PNG) else "webp"
        return data_uri(content, kind)

    def _again(self, content: bytes, encoding: Encoding) -> bytes:
        with Image.open(io.BytesIO(content)) as file:
            file.load()
            # No metadata of the file is carried over.
            image = file.convert("L" if file.mode in ("1", "L") else "RGB")
        if self.redact:
            image = blurred(image)
        buffer = io.BytesIO()
        if encoding.side is None:
            image.save(buffer, format="PNG", optimize=True)
        else:
            image.thumbnail((encoding.side, encoding.side))
            image.save(buffer, format="WEBP", quality=encoding.quality, method=4)
        return buffer.getvalue()

    def _problem(self, text: str) -> str | None:
        """Note a problem; there is no picture then."""
        if text not in self.problems:
            _logger.warning("picture %s", text)
            self.problems.append(text)
        return None


def blurred(image: Image.Image) -> Image.Image:
    """The picture made of no more than 4 x 4 averages of it, and no more than a quarter of its pixels each way.

    Everything finer is gone from the result: it is computed from the averages alone.
    """
    longest = max(image.size)
    side = max(1, min(_BLURRED_SIDE, longest // 4))
    few = tuple(max(1, round(side * length / longest)) for length in image.size)
    return image.resize((few[0], few[1]), Image.Resampling.BOX).resize(image.size, Image.Resampling.BICUBIC)
