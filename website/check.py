"""Check the built site: every link and anchor within it leads somewhere, and no page loads anything from the network.

``python -m website.check site`` (part of ``make site``)
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

_ELSEWHERE: Final = re.compile(r"(\w+:)?//")
_TOP: Final = "__top"
"""The theme's button to the top of a page; browsers know it without an anchor."""


@dataclass
class Contents(HTMLParser):
    """What a page links to, what it loads, and the anchors that it has."""

    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the attributes of one element."""
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif name in ("href", "src") and value:
                (self.links if tag == "a" else self.loaded).append(value)


def problems(site: Path) -> list[str]:
    """What is broken, a line each."""
    pages: dict[Path, Contents] = {}
    for path in sorted(site.resolve().rglob("*.html")):
        pages[path] = Contents()
        pages[path].feed(path.read_text(encoding="utf-8"))
    found: list[str] = []
    for path, contents in pages.items():
        if path.name == "404.html":  # its links are those of the place where it is served
            continue
        name = path.relative_to(site.resolve())
        found += [f"{name} loads {one} from the network" for one in contents.loaded if _ELSEWHERE.match(one)]
        found += [
            f"{name}: {one} {why}" for one in contents.links + contents.loaded if (why := _broken(path, one, pages))
        ]
    return found


def _broken(path: Path, link: str, pages: dict[Path, Contents]) -> str:
    """Why a link within the site is broken; empty if it is not."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return ""
    goal = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    goal = goal / "index.html" if goal.is_dir() else goal
    if not goal.exists():
        return "does not exist"
    anchor = unquote(parts.fragment)
    return (
        "has no such anchor" if anchor not in ("", _TOP) and goal in pages and anchor not in pages[goal].anchors else ""
    )


def main() -> int:
    """Print what is broken; the exit code says whether anything is."""
    site = Path(sys.argv[1])
    found = problems(site)
    print("\n".join(found) or f"{len(list(site.rglob('*.html')))} pages, no broken link, nothing from the network")  # noqa: T201
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
