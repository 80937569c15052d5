"""Attacks as objects: the spec that stands for one in plans, jobs and records, from which a process builds it again."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from attacker.attacks.base import Attack
from attacker.attacks.gradient_matching.options import OPTIONS, options_of
from attacker.attacks.gradient_matching.search import Search
from attacker.attacks.registration import ATTACKS, own_fields, place_of
from attacker.attacks.registry import HELD, build_attack
from fl_precode.import_path import is_import_path
from fl_precode.spec import spec_name


def spec_of(attack: object) -> str:
    """The spec of an attack: its name and the settings that differ, or the place of its class; of a spec itself.

    Where no text gives an equal attack again, as of a class in a notebook, this process keeps the object under its
    spec; no other can build it then (`check_travel`).

    Raises:
        TypeError: If it is neither.

    >>> from attacker.attacks.closed_form.hybrid import Hybrid
    >>> spec_of(Hybrid(steps=3)), spec_of("dlg:iterations=9")
    ('hybrid:steps=3', 'dlg:iterations=9')
    """
    if isinstance(attack, str):
        return attack
    if not isinstance(attack, Attack):
        what = f"the class {attack.__name__}: make an object of it" if isinstance(attack, type) else repr(attack)
        raise TypeError(f"expected a spec or an object of an attack, got {what}")
    settings = _literals(attack)
    for spec in (_by_name(attack), _by_place(attack, settings)):
        if spec is not None and _builds(spec, attack):
            return spec
    return _held(attack, settings)


def check_travel(specs: Sequence[str]) -> None:
    """Refuse attacks that no other process can build.

    Raises:
        ValueError: Naming them.
    """
    stay = [spec for spec in specs if spec in HELD or _is_here_alone(spec_name(spec))]
    if stay:
        raise ValueError(
            f"the attack {stay[0]} lives in this process alone: other processes can build it only if its class stands "
            "in a module that they can import, and its settings are numbers, text and the like. Put the class into a "
            "module, or work in one process (workers=1)"
        )


def _is_here_alone(name: str) -> bool:
    """Whether only this process registered the name: neither we nor a plug-in."""
    return name in ATTACKS and not ATTACKS.is_everywhere(name)


def _by_name(attack: Attack) -> str | None:
    """The registered name with the settings that differ from those of the name alone, or None."""
    name = attack.name
    if name not in ATTACKS or _is_here_alone(name):
        return None
    try:
        usual = build_attack(name)
        given = {option: (_setting(attack, option), _setting(usual, option)) for option in ATTACKS[name].options}
    except (ValueError, TypeError):  # its parts may be someone's own, which specs do not know
        return None
    settings = []
    for option, (value, default) in given.items():
        if value is not None and value != default:
            settings.append(f"{option}={str(value).lower() if isinstance(value, bool) else value}")
    return f"{name}:{','.join(settings)}" if settings else name


def _setting(attack: Attack, option: str) -> object:
    """Setting of the attack, or of the search that it is made of; None where the announced defence says it."""
    search = attack if isinstance(attack, Search) else getattr(attack, "matching", None)
    if not isinstance(search, Search) or option not in OPTIONS:
        return getattr(attack, option, None)
    followed = option == "distance" and getattr(attack, "announced", False)
    return None if followed else options_of(search)[option]


def _by_place(attack: Attack, settings: dict[str, str]) -> str | None:
    place = place_of(type(attack))
    return None if place.startswith("__main__:") or not is_import_path(place) else _with(place, settings)


def _literals(attack: Attack) -> dict[str, str]:
    """Settings that text can hold, where they are not the usual ones."""
    settings = {}
    for field in own_fields(type(attack)):
        value = getattr(attack, field.name)
        if field.init and value != field.default:
            try:
                ast.literal_eval(text := repr(value))
            except (ValueError, SyntaxError):
                continue
            settings[field.name] = text
    return settings


def _with(place: str, settings: dict[str, str]) -> str:
    return f"{place}({', '.join(f'{name}={value}' for name, value in settings.items())})" if settings else place


def _builds(spec: str, attack: Attack) -> bool:
    """Whether the spec gives this attack again."""
    try:
        built = build_attack(spec)
    except (ValueError, KeyError):
        return False
    # What is no dataclass has no equality: without fields of its own the class says everything.
    return type(built) is type(attack) and (built == attack or not vars(attack))


def _held(attack: Attack, settings: dict[str, str]) -> str:
    """Keep the attack in this process, under a spec that no other one has."""
    kind = type(attack)
    place = f"{kind.__module__}:{kind.__qualname__.rpartition('>.')[2]}"
    number = 1
    spec = _with(place, settings)
    while spec in HELD and HELD[spec] is not attack and HELD[spec] != attack:
        number += 1
        spec = _with(place, {**settings, "object": str(number)})
    HELD[spec] = attack
    return spec
