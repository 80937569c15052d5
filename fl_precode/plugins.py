"""Things that can be named, and what other packages add to them by entry points (`importlib.metadata`).

A package adds an attack or a defence by one line of its ``pyproject.toml``::

    [project.entry-points."fl_precode.attacks"]
    loudest-row = "my_package.attacks:LoudestRow"

A plug-in that cannot be used costs nothing but itself: it is left out and says why, in the log, in the lists of the
command line, and to whoever names it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Generic, TypeVar

from fl_precode.randomness.seeding import undisturbed_rng

_logger = logging.getLogger(__name__)

Entry = TypeVar("Entry")


class Registry(Mapping[str, Entry], Generic[Entry]):
    """Entries by name: our own, in order, then those of plug-ins, which are looked for when they are first asked for.

    Args:
        noun: What an entry is, for messages: ``attack``.
        group: Group of the entry points.
        entry_of: Makes the entry of a class that brings none; gets its name, the class, and the plug-in's package.
        rank: Rank of an entry; smaller ones come first, equal ones in the order in which they were added.
    """

    def __init__(
        self,
        noun: str,
        group: str,
        entry_of: Callable[[str, object, str], Entry],
        rank: Callable[[Entry], float] = lambda _entry: 0.0,
    ) -> None:
        self._noun = noun
        self._group = group
        self._entry_of = entry_of
        self._rank = rank
        self._entries: dict[str, Entry] = {}
        self._places: dict[str, str] = {}
        self._refused: dict[str, str] = {}
        self._plugins: set[str] = set()
        self._searched = False

    def __getitem__(self, name: str) -> Entry:
        if name not in self._entries:
            self._search()
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        self._search()
        return iter(sorted(self._entries, key=lambda name: self._rank(self._entries[name])))

    def __len__(self) -> int:
        self._search()
        return len(self._entries)

    @property
    def built_in(self) -> Mapping[str, Entry]:
        """What was added in this process so far, without a search for plug-ins."""
        return MappingProxyType(self._entries)

    @property
    def refused(self) -> Mapping[str, str]:
        """Why a plug-in was left out, by the name of its entry point."""
        self._search()
        return MappingProxyType(self._refused)

    def place_of(self, name: str) -> str:
        """Where the class of a name stands, ``package.module:Class``."""
        return self._places.get(name, "")

    def is_everywhere(self, name: str) -> bool:
        """Whether other processes know the name as well: ours and those of plug-ins, but not what a program added."""
        self._search()
        return name in self._plugins or self.place_of(name).startswith(("attacker.", "fl_precode."))

    def add(self, name: str, entry: Entry, place: str) -> None:
        """Add an entry; the same class may be added again, as a notebook does that runs a cell twice.

        Args:
            name: By which specs call it.
            entry: What is known of it.
            place: Place of its class, ``package.module:Class``.

        Raises:
            ValueError: If the name is no name for a spec, or another class has it.
        """
        if not name or not name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(
                f"expected the {self._noun}'s name to have letters, digits and hyphens alone, as specs need it, "
                f"got {name!r}"
            )
        taken = self._places.get(name, place)
        if taken != place:
            raise ValueError(
                f"the name {name!r} is taken by {taken}: give the {self._noun} {place} a name of its own, such as "
                f"'my-{name}'"
            )
        self._entries[name] = entry
        self._places[name] = place

    @contextmanager
    def instead(self, entries: Mapping[str, Entry]) -> Iterator[None]:
        """Have these entries for a while, in place of those of the same names or besides; for experiments and tests."""
        before, places = dict(self._entries), dict(self._places)
        self._entries.update(entries)
        try:
            yield
        finally:
            self._entries, self._places = before, places

    def why_unknown(self, name: str) -> str:
        """What to say to somebody who asks for a name that is not here."""
        if name in self._refused:
            return f"the {self._noun} {name!r} is a plug-in that cannot be used: {self._refused[name]}"
        return f"there is no {self._noun} {name!r}; expected one of {', '.join(self)}"

    def _search(self) -> None:
        """Load the entry points, once in a process."""
        if self._searched:
            return
        self._searched = True
        for point in sorted(entry_points(group=self._group), key=lambda one: (one.name, one.value)):
            try:
                self._load(point)
            except (Exception, SystemExit) as error:  # foreign code: whatever it does, the others go on
                package = point.dist.name if point.dist is not None else "a package"
                reason = f"{point.value!r} of {package} {_why(error)}"
                self._refused[point.name] = reason
                _logger.warning("the %s plug-in %r was left out: %s", self._noun, point.name, reason)

    def _load(self, point: EntryPoint) -> None:
        taken = self._places.get(point.name)
        if taken is not None and taken.partition(":")[0] != point.module:
            raise _Taken(f"has a name that is taken by {taken}; its entry point needs a name of its own")
        # The first import may build layers; it must not shift anyone's random numbers.
        with undisturbed_rng():
            found = point.load()
        # A class that registers itself did so just now, under its own place: the entry point may call it otherwise.
        own = f"{getattr(found, '__module__', '')}:{getattr(found, '__qualname__', '')}"
        if self._places.get(point.name) not in (point.value, own):
            package = point.dist.name if point.dist is not None else ""
            self.add(point.name, self._entry_of(point.name, found, package), point.value)
        self._plugins.add(point.name)


class _Taken(ValueError):
    """Two plug-ins, or one and an entry of ours, have one name."""


def _why(error: BaseException) -> str:
    if isinstance(error, _Taken):
        return str(error)
    return f"could not be loaded: {type(error).__name__}: {error}"
