"""Checks of settings that stand alone; each names the setting, what was expected and what it got."""

from __future__ import annotations

from collections.abc import Collection


def check_whole(name: str, value: int, *, least: int) -> None:
    """Refuse what is no whole number of at least ``least``.

    Raises:
        ValueError: If it is not one.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"expected {name} to be a whole number of {least} or more, got {value!r}")


def check_positive(name: str, value: float) -> None:
    """Refuse what is not positive and finite.

    Raises:
        ValueError: If it is not.
    """
    if not 0 < value < float("inf"):
        raise ValueError(f"expected a positive, finite {name}, got {value!r}")


def check_weight(name: str, value: float) -> None:
    """Refuse what is negative or not finite.

    Raises:
        ValueError: If it is.
    """
    if not 0 <= value < float("inf"):
        raise ValueError(f"expected a finite {name} of 0 or more, got {value!r}")


def check_flag(name: str, value: bool) -> None:
    """Refuse what is neither True nor False.

    Raises:
        ValueError: If it is something else.
    """
    if not isinstance(value, bool):
        raise ValueError(f"expected {name} to be True or False, got {value!r}")


def check_choice(name: str, value: str, allowed: Collection[str]) -> None:
    """Refuse what is not one of the names that exist.

    Raises:
        ValueError: Naming those that do.
    """
    if value not in allowed:
        raise ValueError(f"expected {name} to be one of {', '.join(allowed)}, got {value!r}")
