"""The reference app of this checkout: what is submitted of it. An installed package has neither it nor this module."""

from __future__ import annotations

import shutil
from pathlib import Path

import fl_precode

PACKAGES = ("server", "clients")
APP_FILES = ("pyproject.toml", "LICENSE", "README.md", "fl_precode", *PACKAGES)
"""What ``flwr run`` is given."""

_PACKAGE = Path(fl_precode.__file__).resolve().parent


def app_parts(folder: Path | None = None) -> dict[str, Path]:
    """The parts of the app by their names in `APP_FILES`.

    Args:
        folder: That holds the app; by default it is found from where this package was imported.

    Raises:
        FileNotFoundError: If a part is missing.
    """
    root = folder or _PACKAGE.parent
    parts = {name: root / name for name in APP_FILES}
    if folder is None:
        parts["fl_precode"] = _PACKAGE
    missing = [name for name, path in parts.items() if not path.exists()]
    if missing:
        raise FileNotFoundError(
            f"the reference app is not complete in {root}: {', '.join(missing)} missing. A checkout has all of it"
        )
    return parts


def stage_app(target: Path, *, folder: Path | None = None) -> Path:
    """Copy the app: edits during a run, and other files beside it, cannot get into what is submitted.

    Args:
        target: New folder.
        folder: As for `app_parts`.

    Raises:
        FileNotFoundError: If a part is missing.
    """
    parts = app_parts(folder)
    target.mkdir()
    for name, path in parts.items():
        if path.is_dir():
            shutil.copytree(path, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(path, target / name)
    return target
