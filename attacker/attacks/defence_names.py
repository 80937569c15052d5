"""Names of defences, as attacks on them name them."""

from __future__ import annotations

from typing import Final

PRECODE: Final = frozenset({"precode", "precode-reference"})
BOTTLENECKS: Final = PRECODE | {"cvb", "cvb-reference"}
DROPOUT: Final = frozenset({"dropout"})
SCALING: Final = frozenset({"clip", "central-dp"})
"""Defences that leave the direction of an update as it is."""
