"""Figures in the prose under Results: each stands in a generated part of its page, or is a named setting.

``python -m benchmarks.result_prose [PAGE ...]`` lists those that do neither, and counts all.
"""

from __future__ import annotations

import json
import re
import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final

from benchmarks.result_tables import RESULTS
from prose.passages import of_markdown

SETTINGS: Final = RESULTS / "settings-in-prose.json"
GENERATED, SETTING, UNTRACED = "in generated tables", "settings", "untraced"
_MARKED: Final = re.compile(r"^<!-- (?!end of )(.*?) -->\n.*?^<!-- end of \1 -->$", re.DOTALL | re.MULTILINE)
_SECTION: Final = re.compile(r"^## ", re.MULTILINE)
_CAPTION: Final = re.compile(r"^\*Measured (?:on|by) .*$", re.MULTILINE)
_MONTH: Final = "(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_NO_FIGURE: Final = (
    re.compile(rf"\b20\d\d-\d\d-\d\d\b|\b\d\d?(?: and \d\d?)? {_MONTH}\b(?:\s20\d\d\b)?|\b{_MONTH} 20\d\d\b"),
    # A name with a number in it: ResNet20-4, ViT-B/32, CIFAR-10, float32.
    re.compile(r"(?<![\w.])[A-Za-z_]\w*(?:[-/]\w+)*"),
)
_ONE: Final = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+|(?=\.\d))(?:\.\d+)*(?:e-?\d+)?"
_UNIT: Final = r" ?(?:%|dB|ms|min|s|h|kB|MB|GB|MiB|GiB|times)(?!\w)"
_NUMBER: Final = re.compile(rf"(?<![\w.])({_ONE}(?:[x-]{_ONE})*)({_UNIT})?")


@dataclass(frozen=True)
class Figure:
    """A number in prose.

    Attributes:
        text: As it is written, with its unit where one follows: ``1.79 GB``, ``3072-1024-1024-10``.
        line: Line of its page.
        shown: Whether a generated part of its section shows it; what stands before the first section, of the page.
    """

    text: str
    line: int
    shown: bool

    def kind(self, settings: Mapping[str, str]) -> str:
        """Whether it is generated, a named setting, or neither."""
        return GENERATED if self.shown else SETTING if self.text in settings else UNTRACED


def figures(path: Path) -> list[Figure]:
    """Numbers in the prose of a page: outside marks, and no code, no address of a link, no date, no part of a name."""
    text = path.read_text(encoding="utf-8")
    sections = [_line(text, hit.start()) for hit in _SECTION.finditer(text)]
    generated: set[int] = set()
    shown: dict[int, set[str]] = {}
    for hit in _MARKED.finditer(text):
        first, last = _line(text, hit.start()), _line(text, hit.end())
        generated.update(range(first, last + 1))
        for section in (0, bisect_right(sections, first)):
            shown.setdefault(section, set()).update(one[1] for one in numbers(_CAPTION.sub("", hit[0])))
    found = []
    for passage in of_markdown(path):
        for hit in numbers("" if passage.line in generated else passage.text):
            line = passage.line + passage.text.count("\n", 0, hit.start())
            beside = shown.get(bisect_right(sections, line), set())
            found.append(Figure(hit[0], line, any(same(hit[1], other) for other in beside)))
    return found


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


def numbers(text: str) -> Iterator[re.Match[str]]:
    """Numbers of a text, with their units; dates and numbers in names are none.

    >>> [hit[0] for hit in numbers("On 3 May 2026 ResNet20-4 took 1,200 s at 3x32x32, .6 of 1e-3 and 84 %.")]
    ['1,200 s', '3x32x32', '.6', '1e-3', '84 %']
    """
    for other in _NO_FIGURE:
        text = other.sub(lambda hit: re.sub(r"\S", " ", hit[0]) if re.search(r"\d", hit[0]) else hit[0], text)
    return _NUMBER.finditer(text)


def same(said: str, shown: str) -> bool:
    """Whether a number in prose is one that a table shows; with two digits or more it may be rounded.

    >>> same("1,200", "1200"), same("94", "93.6"), same(".94", "0.9374"), same("1e-3", "0.001"), same("8x8", "8x8")
    (True, True, True, True, True)
    >>> same("9", "8.6"), same("95", "93.6"), same("0.9374", ".94"), same("8x8", "64")
    (False, False, False, False)
    """
    if not (_plain(said) and _plain(shown)):
        return said == shown
    one, other = (Decimal(number.replace(",", "")) for number in (said, shown))
    _, digits, power = one.as_tuple()
    return one == other or (len(digits) > 1 and abs(one - other) * 2 <= Decimal(10) ** int(power))


def _plain(number: str) -> bool:
    return re.fullmatch(r"\d*\.?\d+(?:e-?\d+)?", number.replace(",", "")) is not None


def settings() -> dict[str, dict[str, str]]:
    """Numbers in prose that describe a method, by pages, and what each is."""
    found: dict[str, dict[str, str]] = json.loads(SETTINGS.read_text(encoding="utf-8"))
    return found


def complaints(path: Path, named: Mapping[str, str]) -> list[str]:
    """What a reader of a page cannot trace, and settings that are named and not there.

    Args:
        path: A page under Results.
        named: Numbers of its prose that are settings, and what each is.
    """
    prose = figures(path)
    found = [
        f"{path.name}:{figure.line}: expected {figure.text!r} in a generated table of its section, or as a named "
        "setting. If it was measured: put it into the benchmark's file, or with date and command into "
        f"recorded/{path.stem}.json, run python -m benchmarks.result_tables {path.stem}, and write it as the table has "
        f"it or leave it out. If it describes the method: name it under {path.stem!r} in {SETTINGS.name}."
        for figure in prose
        if figure.kind(named) == UNTRACED
    ]
    return found + [
        f"{SETTINGS.name}: {path.stem!r} names {text!r} ({what}), which is not in the page's prose: remove the entry"
        for text, what in named.items()
        if text not in {figure.text for figure in prose}
    ]


def main() -> int:
    """Command line."""
    named, kinds, found = settings(), Counter[str](), list[str]()
    for path in sorted(RESULTS.glob("*.md")):
        if path.stem in sys.argv[1:] or not sys.argv[1:]:
            own = named.get(path.stem, {})
            kinds.update(figure.kind(own) for figure in figures(path))
            found += complaints(path, own)
    print("\n".join([*found, ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))]))
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
