"""Registration of an attack: all that its name stands for is declared at its class, and every table is read from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from functools import partial
from inspect import getdoc, isabstract
from types import MappingProxyType
from typing import Any, Final, TypedDict, TypeVar, Unpack

from attacker.attacks.announced_update import COMPARED, follows_announcement
from attacker.attacks.base import Attack
from fl_precode.plugins import Registry
from fl_precode.spec import Spec, parse_spec

GROUP: Final = "fl_precode.attacks"
"""Entry points by which other packages add attacks."""

_LAST: Final = 1_000
_GREY: Final = "#64748b"
_TRUE_OR_FALSE: Final = ("true", "false")

Kind = TypeVar("Kind", bound=type[Attack])


@dataclass(frozen=True, kw_only=True)
class AttackEntry:
    """Properties of an attack that can be named.

    Attributes:
        description: One line.
        source: The paper that it follows.
        build: Makes it from the checked spec.
        title: Its name for people, as it stands within a sentence; empty for the name that specs use.
        options: Names of the options that the spec may carry.
        answers: Names of the defences that it takes into account, or that cannot touch what it works with, where it is
            applicable, in any combination; the verdict says so when no attack that answers the whole announced defence
            was run. Of one spec: `answers_as`.
        inside: Those of these defences in the model, of which it needs one: it searches for what they drew, and
            compares updates as other defences ask besides. Empty for attacks that need none.
        oblivious: Whether it answers them only because they cannot touch what it works with: it does the same without.
        needs: Kinds of knowledge without which it is no attack: ``labels``, ``batch-size``, ``buffers``, ``defence``,
            ``learning-rate``, ``auxiliary-data``. What it can recover, or do without, is not here.
        rank: Its place among all attacks, smaller for those that reach more where they fit: formulas, then systems of
            equations, then searches with more and with less knowledge. Those without one come last.
        cost: Cost of one update in iterations of gradient matching, for attacks that do not search for a number of
            iterations; measured on some models, on others a guess. None for searches, and where nobody knows.
        cost_of_iteration: Cost of one iteration of a search, in those of plain gradient matching.
        exact: Whether it is a formula: it replays nothing, so that it costs the same however many steps are behind an
            update, and calls a result converged only where its equations have one solution.
        portfolio: Its place among the members of a portfolio, where what is exact attacks first whatever its place;
            None for attacks that are no members. New members take the last place: the others then draw as before.
        made_of_others: Whether it runs other attacks that can be named.
        colour: Colour of its lines and bars in figures.
    """

    description: str
    source: str
    build: Callable[[Spec], Attack] = field(repr=False)
    title: str = ""
    options: tuple[str, ...] = ()
    answers: frozenset[str] = frozenset()
    inside: frozenset[str] = frozenset()
    oblivious: bool = False
    needs: frozenset[str] = frozenset()
    rank: float = _LAST
    cost: float | None = None
    cost_of_iteration: float = 1.0
    exact: bool = False
    portfolio: int | None = None
    made_of_others: bool = False
    colour: str = _GREY

    @property
    def adaptive(self) -> bool:
        """Whether it takes any defence into account."""
        return bool(self.answers)

    @property
    def works_by_defence(self) -> bool:
        """Whether it takes a defence into account and would not do the same without: it has to know the defence."""
        return self.adaptive and not self.oblivious

    @property
    def plain_search(self) -> bool:
        """Whether it is a search that ignores every defence, with which a defence is compared."""
        return "batch-size" in self.needs and not self.answers

    def answers_as(self, spec: str) -> frozenset[str]:
        """Names of the defences that the attack answers with a spec's settings.

        >>> "prune" in ATTACKS["ignore"].answers_as("ignore:distance=l2")
        False
        """
        return self.answers if not self.inside or follows_announcement(parse_spec(spec)) else self.answers - COMPARED


def field_options(kind: type[Attack]) -> tuple[str, ...]:
    """Options of a spec that are the fields of an attack's class."""
    return tuple(option.name for option in own_fields(kind) if option.init)


def own_fields(kind: type) -> tuple[Field[Any], ...]:
    """The fields of a class; none of one that is no dataclass."""
    return fields(kind) if is_dataclass(kind) else ()


def from_fields(kind: type[Attack], spec: Spec) -> Attack:
    """Make an attack from a checked spec whose options are fields of its class: numbers, true or false, or text.

    Raises:
        ValueError: If a value is of another kind, or the class refuses it.
    """
    kinds = {option.name: str(option.type) for option in own_fields(kind)}
    values = {name: _value(spec, name, kinds[name]) for name in spec.options}
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{spec.text!r}: {error}") from None


class AttackData(TypedDict, total=False):
    """What may be said of an attack besides; see the attributes of `AttackEntry`."""

    title: str
    answers: frozenset[str]
    inside: frozenset[str]
    oblivious: bool
    needs: frozenset[str]
    rank: float
    cost: float
    cost_of_iteration: float
    exact: bool
    portfolio: int
    made_of_others: bool
    colour: str


def register_attack(
    name: str,
    *,
    description: str,
    source: str,
    options: Callable[[type[Attack]], tuple[str, ...]] = field_options,
    build: Callable[[type[Attack], Spec], Attack] = from_fields,
    **known: Unpack[AttackData],
) -> Callable[[Kind], Kind]:
    """Register the decorated class as an attack that specs, audits and reports know by name.

    It stands above ``@dataclass``, so that the class has its fields.

    Args:
        name: By which specs call it; a class may be registered under several names, with different settings.
        description: One line for the list of attacks.
        source: The paper that it follows.
        options: Names of the options of its specs; by default the fields of the class.
        build: Makes it from the class and a checked spec; by default the options are fields.
        **known: What is known of it besides, as in `AttackEntry`: title, answers, needs, rank, cost and others.

    Raises:
        ValueError: If the name is taken by another class, or is no name for a spec.
        TypeError: If what is decorated is no attack.
    """

    def decorate(kind: Kind) -> Kind:
        check_kind(kind)
        entry = AttackEntry(
            description=description, source=source, build=partial(build, kind), options=options(kind), **known
        )
        ATTACKS.add(name, entry, place_of(kind))
        kind.registered = MappingProxyType({**kind.__dict__.get("registered", {}), name: entry})
        return kind

    return decorate


def check_kind(kind: object) -> None:
    """Refuse what is no class of attacks.

    Raises:
        TypeError: If it is none, or a method is missing.
    """
    if not (isinstance(kind, type) and issubclass(kind, Attack)):
        what = kind.__name__ if isinstance(kind, type) else type(kind).__name__
        raise TypeError(f"expected a subclass of fl_precode.attacks.Attack with refuses() and run(), got {what}")
    if isabstract(kind):
        missing = ", ".join(sorted(kind.__abstractmethods__))
        raise TypeError(f"the attack {kind.__name__} lacks {missing}: see docs/how-to/adding-an-attack.md")


def entry_of_class(name: str, kind: object, package: str) -> AttackEntry:
    """What is known of a class that does not register itself: its name, its fields and the line of its docstring.

    Raises:
        TypeError: If it is no class of attacks.
        ValueError: If it is registered under other names.
    """
    check_kind(kind)
    assert isinstance(kind, type)
    registered: Mapping[str, AttackEntry] = kind.__dict__.get("registered", {})
    if registered and name not in registered:
        raise ValueError(f"it registers {', '.join(registered)}: give its entry point the same name, not {name!r}")
    return AttackEntry(
        description=(getdoc(kind) or kind.__name__).partition("\n")[0].rstrip("."),
        source=package or kind.__module__,
        build=partial(from_fields, kind),
        title=kind.__name__,
        options=field_options(kind),
    )


def place_of(kind: type) -> str:
    """Where a class stands: ``package.module:Class``."""
    return f"{kind.__module__}:{kind.__qualname__}"


def _value(spec: Spec, name: str, kind: str) -> object:
    if kind.startswith("bool"):
        return spec.choice(name, _TRUE_OR_FALSE, "true") == "true"
    if kind.startswith("int"):
        return spec.integer(name)
    return spec.number(name) if kind.startswith("float") else spec.options[name]


def _rank(entry: AttackEntry) -> float:
    return entry.rank


ATTACKS: Registry[AttackEntry] = Registry("attack", GROUP, entry_of_class, _rank)
"""Attacks by name, strongest first; those of plug-ins too."""
