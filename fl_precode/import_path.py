"""Specs that name a class by where it stands: ``package.module:Class``, or ``package.module:Class(steps=3)``."""

from __future__ import annotations

import ast
import importlib
import re
from typing import Any

from fl_precode.randomness.seeding import undisturbed_rng

PATH = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_][\w.]*)\s*(\(.*\))?\s*", re.DOTALL)
"""Module, attribute, and settings with their parentheses or nothing."""


def is_import_path(text: str) -> bool:
    """Whether a spec names a place in a module, and not something by name.

    >>> is_import_path("my_app.attacks:Mine(steps=3)"), is_import_path("dlg:iterations=9"), is_import_path("dlg")
    (True, False, False)
    """
    return PATH.fullmatch(text) is not None


def split_path(text: str, noun: str) -> tuple[str, str, dict[str, object]]:
    """Module, attribute and settings of a spec that `is_import_path` knows; nothing is imported.

    Args:
        text: The spec.
        noun: What it names, for messages: ``model``.

    Raises:
        ValueError: If the settings are not literals by keyword.

    >>> split_path("my_app.attacks:Mine(steps=3)", "attack")
    ('my_app.attacks', 'Mine', {'steps': 3})
    """
    match = PATH.fullmatch(text)
    if match is None:
        raise ValueError(f"{noun} {text!r}: expected package.module:name, or package.module:name(key=value)")
    return match[1], match[2], _settings(text, noun, match[3])


def load(text: str, noun: str) -> Any:
    """What stands at the place that a spec names.

    Raises:
        ValueError: If the module cannot be imported, or has no such attribute.
    """
    path, attribute, _ = split_path(text, noun)
    found = _imported(text, noun, path)
    for name in attribute.split("."):
        if not hasattr(found, name):
            public = ", ".join(word for word in dir(found) if not word.startswith("_")) or "nothing public"
            raise ValueError(f"{noun} {text!r}: {path!r} has no {attribute!r}; it has {public}")
        found = getattr(found, name)
    return found


def _imported(text: str, noun: str, path: str) -> Any:
    try:
        # The first import may build layers; it must not shift anyone's random numbers, and only the first one would.
        with undisturbed_rng():
            return importlib.import_module(path)
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name and f"{path}.".startswith(f"{error.name}.")
        why = "there is no such module" if missing else f"importing it failed: {type(error).__name__}: {error}"
        raise ValueError(
            f"{noun} {text!r}: cannot import {path!r}, {why}. It must be installed, or PYTHONPATH must hold its folder"
        ) from error


def _settings(text: str, noun: str, arguments: str | None) -> dict[str, object]:
    """Keyword arguments of ``(key=literal, ...)``; nothing is evaluated but literals."""
    if arguments is None:
        return {}
    wanted = "expected settings by keyword, such as Net(num_classes=10, name='small')"
    try:
        call = ast.parse(f"f{arguments}", mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{noun} {text!r}: {wanted}, and {arguments!r} cannot be read: {error}") from None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise ValueError(f"{noun} {text!r}: {wanted}; {arguments!r} has values without a name")
    found: dict[str, object] = {}
    for one in call.keywords:
        source = ast.unparse(one.value)
        try:
            value = ast.literal_eval(one.value)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            raise ValueError(
                f"{noun} {text!r}: expected {one.arg} to be a literal (a number, text in quotes, True, False, None, a "
                f"list, a tuple or a dict), got {source!r}. A function that needs more is written in Python, and named"
            ) from None
        if one.arg is None:
            raise ValueError(f"{noun} {text!r}: {wanted}; '**' is not read")
        found[one.arg] = value
    return found
