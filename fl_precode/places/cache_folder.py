"""Cache folder for data that can be had again: downloaded image sets, copies of tapes, costs of attacks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

VARIABLE: Final = "FL_PRECODE_CACHE"
"""Environment variable that names the folder."""


def cache_folder() -> Path:
    """The folder that ``FL_PRECODE_CACHE`` names, else ``$XDG_CACHE_HOME/fl-precode``, else ``~/.cache/fl-precode``.

    It need not exist. A relative path in ``XDG_CACHE_HOME`` is not used, as the XDG base directory specification says.
    """
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser().absolute()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "fl-precode"
