"""The pack's page as a PDF, by WeasyPrint where it is installed (extra ``pdf``)."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import warnings
from collections.abc import Iterator
from typing import Any, Final

MISSING: Final = (
    "the PDF was not written: WeasyPrint {why}. Install it with pip install 'fl-precode[pdf]' (on Debian also "
    "apt-get install libpango-1.0-0 libpangoft2-1.0-0; other systems: its own documentation), or print evidence.html "
    "from a browser"
)

_EPOCH: Final = "SOURCE_DATE_EPOCH"
"""Variable of reproducible builds: the time that programs write instead of the present one."""

_SVG: Final = re.compile(r"<svg class=\"(?:bar|chart)[^>]*>")
_RULE: Final = re.compile(r"([^{}]*)\{([^{}]*)\}")
_DRAWN: Final = (".bar", ".chart", ".line-", ".dot-")
"""Selectors of what charts are made of."""


class NoPdfTool(Exception):
    """There is no PDF tool on this machine; the text says what to do."""


def pdf(html: str) -> bytes:
    """The page as PDF; the same page gives the same bytes.

    Args:
        html: The page. It loads nothing: pictures are in it.

    Raises:
        NoPdfTool: If WeasyPrint is not installed, or does not find its libraries.
    """
    weasyprint = _tool()
    with _quiet(), _undated():
        # Pictures in the page itself are read, and nothing else: no file and no address.
        fetcher = weasyprint.urls.URLFetcher(allowed_protocols=("data",))
        document = weasyprint.HTML(string=_for_print(html), url_fetcher=fetcher)
        return bytes(document.write_pdf())


def _tool() -> Any:
    try:
        # It prints a paragraph of its own where its libraries are missing.
        # Without HarfBuzz-Subset it subsets fonts by fontTools, and warns that a later version will not.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), _unwarned():
            import weasyprint
            import weasyprint.urls
    except ImportError:
        raise NoPdfTool(MISSING.format(why="is not installed")) from None
    except OSError:
        raise NoPdfTool(MISSING.format(why="does not find its libraries (Pango)")) from None
    return weasyprint


@contextlib.contextmanager
def _unwarned() -> Iterator[None]:
    """Without the warning about a library that the tool can do without."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="HarfBuzz-Subset", category=DeprecationWarning)
        yield


@contextlib.contextmanager
def _undated() -> Iterator[None]:
    """Without the time in the fonts that fontTools subsets, which would make other bytes of the same page."""
    given = os.environ.get(_EPOCH)
    os.environ.setdefault(_EPOCH, "0")
    try:
        yield
    finally:
        if given is None:
            os.environ.pop(_EPOCH, None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings about properties that a browser knows and the tool does not."""
    names = ("weasyprint", "fontTools", "fontTools.subset")
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def _for_print(html: str) -> str:
    """The page with the rules of its charts inside each of them: the tool applies a page's own to none of them."""
    rules = _chart_rules(html)
    return _SVG.sub(lambda found: f"{found[0]}<style>{rules}</style>", html)


def _chart_rules(html: str) -> str:
    """The rules of charts in the page's style sheet, with the colours of its light scheme in place of their names."""
    sheet = html.partition("<style>")[2].partition("</style>")[0]
    # What stands in a block of @media is not for the light scheme, or not for all media.
    plain = re.sub(r"@media[^{]*\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}", "", re.sub(r"/\*.*?\*/", "", sheet, flags=re.DOTALL))
    colours = dict(re.findall(r"(--[\w-]+):\s*([^;}]+)", plain))
    kept = [
        f"{selector.strip()}{{{declared}}}"
        for selector, declared in _RULE.findall(plain)
        if selector.strip().startswith(_DRAWN)
    ]
    return re.sub(r"var\((--[\w-]+)\)", lambda name: colours.get(name[1], "#000").strip(), "".join(kept))
