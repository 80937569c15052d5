"""Docstrings on the site: examples become blocks of code, and pages that are named become links."""

from __future__ import annotations

import re
from typing import Any, Final

import griffe

_EXAMPLE: Final = re.compile(r"^( *)>>> .*(?:\n\1\S.*|\n\1 +\S.*)*", re.MULTILINE)
_PAGE: Final = re.compile(r"\bdocs/((?:[\w-]+/)+)([\w-]+)\.md")


def fenced(text: str) -> str:
    r"""Put each example, up to the next blank line, between fences.

    >>> fenced(">" ">> 1 + 1\n2").splitlines()
    ['```pycon', '>>> 1 + 1', '2', '```']
    """
    return _EXAMPLE.sub(lambda match: f"{match[1]}```pycon\n{match[0]}\n{match[1]}```", text)


def linked(text: str) -> str:
    """Link the pages that a docstring names by their place in the repository; the API's pages lie two folders down.

    >>> linked("(docs/how-to/truth.md)")
    '([truth](../../how-to/truth.md))'
    """
    return _PAGE.sub(r"[\2](../../\1\2.md)", text)


class Docstrings(griffe.Extension):
    """Applies `fenced` and `linked` to every docstring that griffe reads."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the docstring of an object, where it has one."""
        del kwargs
        if obj.docstring is not None:
            obj.docstring.value = linked(fenced(obj.docstring.value))
