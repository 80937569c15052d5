"""Truth that a function of the auditor's gives: in a simulation the program that runs it knows all images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any

from attacker.audit.truth.base import HeldTruth, Located, Truth
from fl_precode.true_images import true_batch

TruthFunction = Callable[[str, int], "tuple[Any, Any] | None"]
"""From node id and round to the images, in [0, 1], and labels that the client used; None where it does not know."""

_MOST_ASKED = 64
"""Updates at most whose images make the mean image."""


class FunctionTruth(HeldTruth):
    """Asks a function.

    Args:
        function: See `TruthFunction`.
        origin: For messages.
        clients: Node id to name.
        entries: Updates of the tape, for the mean image.
    """

    def __init__(
        self, function: TruthFunction, origin: str, clients: Mapping[str, str], entries: Sequence[Located]
    ) -> None:
        super().__init__(origin, clients)
        self._entries = list(entries)
        self._function = function
        self._classes: dict[tuple[str, int], tuple[int, ...] | None] = {}
        self._asked = lru_cache(maxsize=_MOST_ASKED)(self._ask)

    def knows(self, entry: Located) -> bool:
        """Whether the function gives anything, or raises, which `truth` then says."""
        return self._classes_of(entry) is not None

    def truth(self, entry: Located) -> Truth | None:
        """What the function gives."""
        return self._asked(entry.node, entry.round)

    def classes(self, entry: Located) -> tuple[int, ...] | None:
        """Classes of the labels that the function gives."""
        return self._classes_of(entry) or None

    def _classes_of(self, entry: Located) -> tuple[int, ...] | None:
        """None without a truth; empty where there should be one. Asked once: a function may be slow."""
        place = (entry.node, entry.round)
        if place not in self._classes:
            try:
                known = self.truth(entry)
                self._classes[place] = None if known is None else tuple(sorted(set(known.labels.tolist())))
            except ValueError:
                self._classes[place] = ()
        return self._classes[place]

    def held(self) -> Iterator[Truth]:
        """Images of the first updates of the tape."""
        for entry in self._entries[:_MOST_ASKED]:
            try:
                known = self.truth(entry)
            except ValueError:
                continue
            if known is not None:
                yield known

    def _ask(self, node: str, number: int) -> Truth | None:
        try:
            given = self._function(node, number)
        except Exception as error:  # foreign code may raise anything
            raise ValueError(f"{self.origin} raised {type(error).__name__}: {error}") from error
        if given is None:
            return None
        if not isinstance(given, tuple) or len(given) != 2:
            raise ValueError(f"expected (images, labels) or None from {self.origin}, got {type(given).__name__}")
        try:
            images, labels = true_batch(*given)
        except ValueError as error:
            raise ValueError(f"{self.origin}: {error}") from error
        return Truth(images=images, labels=labels)


def import_function(spec: str) -> TruthFunction:
    """The function that ``package.module:name`` names.

    Raises:
        ValueError: If it cannot be imported, or is none.
    """
    module, _, name = spec.partition(":")
    try:
        imported = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"the truth {spec!r} cannot be imported ({error}); expected module:function, importable where the audit "
            "runs, or recorded:PATH, folder:PATH or npz:PATH"
        ) from error
    if not callable(imported):
        raise ValueError(f"{spec!r} is not a function; expected one of (node, round) that returns (images, labels)")
    function: TruthFunction = imported
    return function
