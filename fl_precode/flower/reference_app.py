"""Where the reference app lies: in a checkout beside the package, in an installed package inside it.

Its packages are called ``server`` and ``clients``. Installed under these names they would collide with other people's,
so the wheel carries them as data, in ``fl_precode/reference_app``.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

CARRIED = "reference_app"
"""Name of the folder inside an installed ``fl_precode`` that holds the rest of the app."""

PACKAGES = ("server", "clients")
APP_FILES = ("pyproject.toml", "LICENSE", "README.md", "fl_precode", *PACKAGES)
"""What ``flwr run`` is given."""

_PACKAGE = Path(__file__).resolve().parents[1]


def app_parts(folder: Path | None = None) -> dict[str, Path]:
    """The parts of the app by their names in `APP_FILES`.

    Args:
        folder: That holds the app; by default it is found from where this package was imported.

    Raises:
        FileNotFoundError: If a part is missing.
    """
    root = folder or _root()
    parts = {name: root / name for name in APP_FILES}
    if folder is None:
        parts["fl_precode"] = _PACKAGE
    missing = [name for name, path in parts.items() if not path.exists()]
    if missing:
        raise FileNotFoundError(
            f"the reference app is not complete in {root}: {', '.join(missing)} missing. An installed package and a "
            "checkout both have all of it; install fl-precode again"
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
            shutil.copytree(path, target / name, ignore=shutil.ignore_patterns("__pycache__", CARRIED))
        else:
            shutil.copyfile(path, target / name)
    return target


def make_importable() -> None:
    """Let this process import ``server`` and ``clients`` as the reference app has them.

    A checkout has them on the path already. Those that an installed package carries go to the front of it: whatever
    else is called ``clients`` there is not ours.
    """
    carried = _PACKAGE / CARRIED
    if carried.is_dir() and str(carried) not in sys.path:
        sys.path.insert(0, str(carried))


def _root() -> Path:
    carried = _PACKAGE / CARRIED
    return carried if carried.is_dir() else _PACKAGE.parent
