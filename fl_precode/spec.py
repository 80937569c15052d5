"""Specs: one line of text that names a thing and its options, ``name:key=value,key=value``."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from fl_precode.import_path import is_import_path, split_path

_PLUS = re.compile(r"\+\s*(?=[A-Za-z])")  # not the plus of 1e+2
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Spec:
    """A parsed spec.

    Attributes:
        name: Before the colon.
        options: After it, still text.
        text: The spec as it was given, for messages.
    """

    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    text: str = ""

    def check_options(self, known: Collection[str]) -> None:
        """Refuse options that do not exist.

        Raises:
            ValueError: Naming them and those that exist.
        """
        unknown = sorted(self.options.keys() - set(known))
        if unknown:
            exist = f"it has {', '.join(sorted(known))}" if known else "it has none"
            raise ValueError(f"{self.text!r}: {self.name!r} has no option {', '.join(map(repr, unknown))}; {exist}")

    def choice(self, key: str, allowed: Collection[str], default: str) -> str:
        """The option's value, one of ``allowed``, or the default.

        Raises:
            ValueError: If it is another one.
        """
        value = self.options.get(key, default)
        if value not in allowed:
            raise ValueError(f"{self.text!r}: expected {key} to be one of {', '.join(allowed)}, got {value!r}")
        return value

    def integer(self, key: str) -> int | None:
        """The option as a whole number, None when not given.

        Raises:
            ValueError: If it is not one.
        """
        if key not in self.options:
            return None
        try:
            return int(self.options[key])
        except ValueError:
            raise ValueError(f"{self.text!r}: expected {key} to be a whole number, got {self.options[key]!r}") from None

    def number(self, key: str) -> float | None:
        """The option as a number, None when not given.

        Raises:
            ValueError: If it is not one.
        """
        if key not in self.options:
            return None
        try:
            return float(self.options[key])
        except ValueError:
            raise ValueError(f"{self.text!r}: expected {key} to be a number, got {self.options[key]!r}") from None


def spec_name(text: str) -> str:
    """What a spec names, without its settings: a name, or the place of a class.

    >>> spec_name("dlg:iterations=9"), spec_name("my_app.attacks:Mine(steps=3)")
    ('dlg', 'my_app.attacks:Mine')
    """
    return text.partition("(")[0].strip() if names_class(text) else text.partition(":")[0].strip()


def split_parts(text: str) -> list[str]:
    """The specs that a ``+`` joins, each still a text.

    >>> split_parts("precode + noise:std=1e+2")
    ['precode', 'noise:std=1e+2']
    """
    return [part.strip() for part in _PLUS.split(text)]


def names_class(text: str) -> bool:
    """Whether a spec names a class by its place, and not a thing by name with a setting that lacks its value.

    >>> names_class("mine:Attack"), names_class("my_app.attacks:mine"), names_class("precode:latent")
    (True, True, False)
    """
    module, _, attribute = text.partition(":")
    return is_import_path(text) and ("." in module or "(" in attribute or attribute[:1].isupper())


def parse_spec(text: str) -> Spec:
    """Read ``name`` or ``name:key=value,key=value``, or the place of a class, ``package.module:Class(key=value)``.

    Raises:
        ValueError: If the text has another form, or an option twice.

    >>> parse_spec("precode:latent=64,beta=0.01").options
    {'latent': '64', 'beta': '0.01'}
    """
    if names_class(text):
        settings = split_path(text, "the spec")[2]
        return Spec(name=spec_name(text), options={key: str(value) for key, value in settings.items()}, text=text)
    name, colon, rest = text.partition(":")
    name = name.strip()
    if not name or (colon and not rest.strip()):
        raise ValueError(f"expected a spec of the form name or name:key=value,key=value, got {text!r}")
    options: dict[str, str] = {}
    for part in rest.split(",") if colon else []:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not (key and equals and value):
            raise ValueError(f"{text!r}: expected options of the form key=value,key=value, got {part.strip()!r}")
        if key in options:
            raise ValueError(f"{text!r}: the option {key!r} is given twice; give it once")
        options[key] = value
    return Spec(name=name, options=options, text=text)


def parse_duration(text: str) -> float:
    """Seconds from ``90``, ``90s``, ``10m`` or ``2h``.

    Raises:
        ValueError: If it is something else, or not positive.

    >>> parse_duration("1.5m")
    90.0
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", text)
    seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if seconds <= 0:
        raise ValueError(f"expected a time such as 90s, 10m or 2h, got {text!r}")
    return seconds
