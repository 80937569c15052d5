"""Common parts of every page: its templates, and its embedded files, so that it needs no network."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from attacker import wording
from attacker.attacks.registry import attack_title
from fl_precode.private_file import write_private

TEMPLATES: Final = Path(__file__).parent / "templates"


def environment(*folders: Path, **names: Any) -> Environment:
    """Templates that escape every value and refuse unknown names; all know ``words``, ``attack_title`` and these.

    Args:
        folders: Looked through before the report's own templates.
        names: Values and functions for all templates.
    """
    made = Environment(
        loader=FileSystemLoader([*map(str, folders), str(TEMPLATES)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals.update(words=wording, attack_title=attack_title, **names)
    return made


def write_html(text: str, path: Path) -> Path:
    """Write a page, readable by its owner only, since it may show people's images; its absolute path.

    Raises:
        OSError: If it cannot be written.
    """
    path = path.expanduser().absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_private(path, text.encode())
    return path


def digest(text: str) -> str:
    """Digest of a style or script, as a page's content security policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def data_uri(content: bytes, kind: str = "png") -> str:
    """A picture as a ``data:`` URI.

    Args:
        content: Content of the picture's file.
        kind: Subtype of its media type: ``png``, ``svg+xml``.
    """
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
