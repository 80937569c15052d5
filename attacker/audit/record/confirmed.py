"""Images that an update confirms by itself, without anybody knowing the true ones.

A search that reaches the update says little: different images can have nearly the same update. An exact formula is
another matter. It solves equations that have one solution, and replaying the image that it finds gives the update again
only if the equations were those of this update.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from attacker.attacks.registry import ATTACKS
from attacker.audit.record.schema import ImageResult
from fl_precode.spec import spec_name

AGREES: Final = 1e-4
"""Distance up to which a replayed gradient is the update: rounding of weights that were subtracted ends far below."""


def is_formula(spec: str) -> bool:
    """Whether an attack solves equations instead of searching; False where nobody here knows it.

    >>> is_formula("activation-span:starts=9"), is_formula("dlg"), is_formula("someone.s:Own")
    (True, False, False)
    """
    entry = ATTACKS.get(spec_name(spec))
    return entry is not None and entry.exact


def confirms(row: ImageResult) -> bool:
    """Whether the update itself confirms this image: an exact formula found it, and its gradient is the update.

    Formulas call a result converged only where their equations have one solution.
    """
    return is_formula(row.attack) and row.outcome == "converged" and agrees(row.matching_loss)


def agrees(matching_loss: float | None) -> bool:
    """Whether what a formula found gives the update again, by the distance of the two.

    >>> agrees(1e-9), agrees(0.1), agrees(None)
    (True, False, False)
    """
    return matching_loss is not None and matching_loss <= AGREES


def confirmed(rows: Iterable[ImageResult]) -> dict[str, ImageResult]:
    """Results that the update confirms, the first for each image, by the image's identifier."""
    by_victim: dict[str, ImageResult] = {}
    for row in rows:
        if confirms(row):
            by_victim.setdefault(row.victim_id, row)
    return by_victim
