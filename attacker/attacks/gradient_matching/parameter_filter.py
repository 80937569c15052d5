"""Parameters that count in the distance: patterns of their names."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase


def check_patterns(layers: str) -> None:
    """Refuse patterns that no parameter could have.

    Raises:
        ValueError: If one of the patterns is empty.
    """
    if layers and not all(pattern.removeprefix("!") for pattern in layers.split("|")):
        raise ValueError(
            f"expected layers to be patterns of parameter names separated by |, such as conv*|!conv1.bias, "
            f"got {layers!r}"
        )


def matched_parameters(layers: str, names: Collection[str]) -> frozenset[str]:
    """The parameters that patterns choose.

    Args:
        layers: Shell patterns separated by ``|``; those with a leading ``!`` leave parameters out. Without a pattern
            that chooses, all are chosen. Empty chooses all.
        names: All parameter names.

    Raises:
        ValueError: If a pattern fits no name, or no parameter is left; the message lists the names.

    >>> sorted(matched_parameters("!fc.*", ["conv.weight", "fc.weight", "fc.bias"]))
    ['conv.weight']
    """
    if not layers:
        return frozenset(names)
    chosen: set[str] = set()
    left_out: set[str] = set()
    patterns = layers.split("|")
    for pattern in patterns:
        matches = {name for name in names if fnmatchcase(name, pattern.removeprefix("!"))}
        if not matches:
            raise ValueError(f"layers={layers!r}: {pattern!r} fits no parameter; there are {', '.join(names)}")
        if pattern.startswith("!"):
            left_out |= matches
        else:
            chosen |= matches
    if all(pattern.startswith("!") for pattern in patterns):
        chosen = set(names)
    if not chosen - left_out:
        raise ValueError(f"layers={layers!r} leaves no parameter to match; there are {', '.join(names)}")
    return frozenset(chosen - left_out)
