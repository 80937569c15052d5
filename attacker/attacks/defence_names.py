"""Names of defences in the model, as attacks on them name them."""

from __future__ import annotations

from typing import Final

PRECODE: Final = frozenset({"precode", "precode-reference"})
BOTTLENECKS: Final = PRECODE | {"cvb", "cvb-reference"}
DROPOUT: Final = frozenset({"dropout"})
