"""A ladder of noise: bisection for the lowest rung that stops reconstruction, and for the highest affordable one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

RUNGS: Final[tuple[float, ...]] = tuple(float(f"{10 ** (-4 + 4 * step / 9):.4g}") for step in range(10))
"""Noise relative to the clip, from 1e-4 to 1, each 2.8 times the one below."""

TOP: Final = len(RUNGS) - 1


def lowest(holds: Callable[[int], bool], bottom: int = 0, top: int = TOP) -> int | None:
    """The lowest rung that holds, as if every rung above one that holds did so too; None if none does.

    >>> lowest(lambda rung: rung >= 4), lowest(lambda rung: False)
    (4, None)
    """
    low, high = bottom, top + 1
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low if low <= top else None


def highest(keeps: Callable[[int], bool], bottom: int = 0, top: int = TOP) -> int | None:
    """The highest rung that can be afforded, as if every rung below one that can could be too; None if none can.

    >>> highest(lambda rung: rung <= 4), highest(lambda rung: False)
    (4, None)
    """
    above = lowest(lambda rung: not keeps(rung), bottom, top)
    best = top if above is None else above - 1
    return best if best >= bottom else None


def settled(holds: Callable[[int], bool], rung: int | None, top: int = TOP) -> tuple[int | None, list[int]]:
    """The rung, or one above it, such that the next one holds as well.

    That more noise never helps an attack is an assumption. Where the rung above one that holds leaks all the same, the
    search goes on above it.

    Args:
        holds: Whether nothing is reconstructed at a rung.
        rung: That was found to hold, or None.
        top: The highest rung.

    Returns:
        The rung, or None if there is none, and the rungs that leaked above one that held.

    >>> settled(lambda rung: rung in (3, 5, 6, 7), 3)
    (5, [4])
    """
    leaked: list[int] = []
    while rung is not None and rung < top and not holds(rung + 1):
        leaked.append(rung + 1)
        rung = next((higher for higher in range(rung + 2, top + 1) if holds(higher)), None)
    return rung, leaked
