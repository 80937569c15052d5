"""Where this package keeps what can be had again: downloaded image sets, copies of tapes, costs of attacks."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/fl-precode``, by default ``~/.cache/fl-precode``; it need not exist.

    The XDG base directory specification says that a relative path in the variable is not to be used.
    """
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (named if named.is_absolute() else Path.home() / ".cache") / "fl-precode"
