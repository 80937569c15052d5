"""Parameters that count in the distance: patterns of their names, and a share of the layers from the output on."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase

from torch import nn

_DEEPER = "deeper:"


def check_patterns(layers: str) -> None:
    """Refuse patterns that no parameter could have.

    Raises:
        ValueError: If one of the patterns is empty, or a share of the layers is none.
    """
    if not layers:
        return
    patterns = [pattern.removeprefix("!") for pattern in layers.split("|")]
    if not all(patterns):
        raise ValueError(
            f"expected layers to be patterns of parameter names separated by |, such as conv*|!conv1.bias, "
            f"got {layers!r}"
        )
    for pattern in patterns:
        if pattern.startswith(_DEEPER) and not 0 < _share(pattern) < 1:
            raise ValueError(
                f"expected a share of the layers between 0 and 1 after {_DEEPER}, such as {_DEEPER}0.5 for the "
                f"deeper half, got {pattern!r}"
            )


def matched_in(model: nn.Module, layers: str, names: Collection[str]) -> frozenset[str]:
    """The parameters of an update that patterns choose, whatever their order in the update: tapes keep none.

    Args:
        model: Its order says which layers are deeper.
        layers: Patterns; see `matched_parameters`.
        names: Parameters of the update.

    Raises:
        ValueError: As `matched_parameters`.
    """
    places = {name: place for place, (name, _) in enumerate(model.named_parameters(remove_duplicate=False))}
    return matched_parameters(layers, sorted(names, key=lambda name: places.get(name, len(places))))


def matched_parameters(layers: str, names: Collection[str]) -> frozenset[str]:
    """The parameters that patterns choose.

    Args:
        layers: Shell patterns separated by ``|``; those with a leading ``!`` leave parameters out. Without a pattern
            that chooses, all are chosen. Empty chooses all. ``deeper:0.5`` stands for the parameters of the last half
            of the layers, in the model's order, and at least of one.
        names: All parameter names, in the model's order.

    Raises:
        ValueError: If a pattern fits no name, or no parameter is left; the message lists the names.

    >>> sorted(matched_parameters("!fc.*", ["conv.weight", "fc.weight", "fc.bias"]))
    ['conv.weight']
    >>> sorted(matched_parameters("deeper:0.5", ["conv.weight", "fc.weight", "fc.bias"]))
    ['fc.bias', 'fc.weight']
    """
    if not layers:
        return frozenset(names)
    chosen: set[str] = set()
    left_out: set[str] = set()
    patterns = layers.split("|")
    for pattern in patterns:
        matches = _fitting(pattern.removeprefix("!"), names)
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


def _fitting(pattern: str, names: Collection[str]) -> set[str]:
    if not pattern.startswith(_DEEPER):
        return {name for name in names if fnmatchcase(name, pattern)}
    # A layer is a module with parameters of its own.
    owners = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    deeper = owners[-max(1, round(_share(pattern) * len(owners))) :]
    return {name for name in names if name.rpartition(".")[0] in deeper}


def _share(pattern: str) -> float:
    try:
        return float(pattern.removeprefix(_DEEPER))
    except ValueError:
        return 0.0
