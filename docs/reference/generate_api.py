"""Write docs/reference/api.md from the docstrings of the public modules: ``python docs/reference/generate_api.py``."""

from __future__ import annotations

import inspect
import re
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Final, get_origin

PAGE: Final = Path(__file__).with_name("api.md")
SHELVES: Final = ("attacks", "labels", "leakage", "metrics", "report", "defences", "flower", "tape", "privacy")
_SECTIONS: Final = ("Args", "Attributes", "Returns", "Raises", "Yields")
_HEAD: Final = """# Public API

Made from the docstrings by `docs/reference/generate_api.py`. What stands here keeps its meaning within a minor version
([Semantic Versioning](https://semver.org)); everything else may change, the package `attacker` above all. Type hints
are shipped, the examples run as tests. Besides this page `fl-precode` with its commands and options is promised, with
its exit codes; the tape's format; and `audit.json` with its schema version:
[architecture](../explanation/architecture.md).
"""


def page() -> str:
    """The page as Markdown."""
    package = import_module("fl_precode")
    shelved = [name for name in package.__all__ if name not in SHELVES]
    parts = [_HEAD, "## fl_precode\n", _docstring(package), *(_entry(package, name) for name in shelved)]
    for shelf in SHELVES:
        module = import_module(f"fl_precode.{shelf}")
        parts += [f"## fl_precode.{shelf}\n", _docstring(module)]
        parts += [_entry(module, name) for name in module.__all__]
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _entry(module: ModuleType, name: str) -> str:
    """One name: how it is called, and its docstring."""
    found = getattr(module, name)
    heading = f"### `{module.__name__}.{name}`\n"
    if not callable(found) or get_origin(found) is not None:
        words = _comment_of(module, name) or f"A {type(found).__name__}."
        return f"{heading}\n{words}\n"
    text = f"{heading}\n```python\n{name}{_signature(found)}\n```\n\n{_docstring(found)}"
    if inspect.isclass(found) and not issubclass(found, BaseException):
        text += "".join(_method(found, one) for one in sorted(vars(found)) if not one.startswith("_"))
    return text


def _method(kind: type, name: str) -> str:
    """A line for a method or a property that the class itself has."""
    found = inspect.getattr_static(kind, name)
    function = getattr(found, "fget", None) or getattr(found, "__func__", None) or found
    if not inspect.isfunction(function) or not function.__doc__:
        return ""
    line = inspect.cleandoc(function.__doc__).partition("\n\n")[0].replace("\n", " ")
    called = name if isinstance(found, property) else f"{name}{_signature(getattr(kind, name))}"
    return f"\n* `{called}`: {line}\n"


def _signature(found: object) -> str:
    if inspect.isclass(found) and not is_dataclass(found) and found.__init__ is object.__init__:
        return ""
    try:
        text = str(inspect.signature(found))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return "(...)"
    return re.sub(r" at 0x[0-9a-f]+", "", text).replace("'", "")


def _comment_of(module: ModuleType, name: str) -> str:
    """The text behind an assignment, where one stands; looked for where the name comes from."""
    for place in (module, *_sources(module)):
        match = re.search(rf'^{name}\b[^\n]*(?:\n(?:[ )}}\]].*)?)*?"""(.*?)"""', inspect.getsource(place), re.M | re.S)
        if match:
            return inspect.cleandoc(match[1])
    return ""


def _sources(module: ModuleType) -> list[ModuleType]:
    """Modules from which a face takes its names."""
    names = re.findall(r"^from ([\w.]+) import", inspect.getsource(module), re.M)
    found = [import_module(name) for name in names if name.startswith(("attacker", "fl_precode"))]
    return found + [deeper for one in found if hasattr(one, "__path__") for deeper in _sources(one)]


def _docstring(found: object) -> str:
    """A docstring as Markdown: sections become lists, examples blocks."""
    lines: list[str] = []
    section = example = False
    for line in inspect.cleandoc(getattr(found, "__doc__", None) or "").splitlines():
        if line.startswith(">>>") and not example:
            lines.append("```python")
            example = True
        elif example and not line.strip():
            lines += ["```", ""]
            example = False
            continue
        if line.rstrip(":") in _SECTIONS:
            section = True
            lines += [f"**{line.rstrip(':')}**", ""]
        elif section and line.startswith("    ") and not example:
            inner = line[4:]
            lines.append(inner if inner.startswith(" ") else f"* {inner}")
        else:
            section = section and not line.strip()
            lines.append(line)
    return "\n".join([*lines, *(["```"] if example else [])]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
