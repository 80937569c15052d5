"""Adaptive attacks from specs: settings of the search, and each attack's own."""

from __future__ import annotations

from dataclasses import fields, replace

from attacker.attacks.adaptive.base import AdaptiveMatching
from attacker.attacks.announced_update import follows_announcement
from attacker.attacks.base import Attack
from attacker.attacks.gradient_matching.attack import GradientMatching
from attacker.attacks.gradient_matching.options import OPTIONS, Option
from attacker.attacks.gradient_matching.presets import PRESETS
from fl_precode.spec import Spec

_TRUE_OR_FALSE = ("true", "false")
_NOT_FOR_ADAPTIVE = ("optimiser", "history", "labels")

_OF_EVERY_SEARCH = ("matching", "announced")

SEARCH_OPTIONS = ("preset", *(name for name in OPTIONS if name not in _NOT_FOR_ADAPTIVE))
"""Options of every adaptive attack: those of the search by Adam."""


def matching_settings(preset: GradientMatching, spec: Spec) -> GradientMatching:
    """A preset with the spec's options in place of its values.

    Raises:
        ValueError: If a value is out of its range, or contradicts another.
    """
    given: dict[str, Option] = {}
    for name, initial in OPTIONS.items():
        if name not in spec.options:
            continue
        if isinstance(initial, str):
            given[name] = spec.options[name]
        elif isinstance(initial, bool):
            given[name] = spec.choice(name, _TRUE_OR_FALSE, "true") == "true"
        else:
            value = spec.integer(name) if isinstance(initial, int) else spec.number(name)
            assert value is not None
            given[name] = value
    try:
        return preset.with_options(**given)
    except ValueError as error:
        raise ValueError(f"{spec.text!r}: {error}") from None


def options_of(kind: type[Attack], *, without: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Names of the options that a spec of this adaptive attack may carry."""
    assert issubclass(kind, AdaptiveMatching)
    names = tuple(field.name for field in fields(kind) if field.name not in _OF_EVERY_SEARCH)
    return (*names, *(name for name in SEARCH_OPTIONS if name not in without))


def build_adaptive(kind: type[Attack], spec: Spec) -> Attack:
    """Make an adaptive attack of this class from its checked spec."""
    assert issubclass(kind, AdaptiveMatching)
    preset = PRESETS[spec.choice("preset", tuple(PRESETS), "inverting-gradients")]
    settings: dict[str, int | float | None] = {
        field.name: spec.integer(field.name) if field.type == "int" else spec.number(field.name)
        for field in fields(kind)
        if field.name in spec.options and field.name not in _OF_EVERY_SEARCH
    }
    announced = follows_announcement(spec)
    named = {name: value for name, value in spec.options.items() if name != "distance" or not announced}
    matching = matching_settings(preset, replace(spec, options=named))
    try:
        return kind(matching=matching, announced=announced, **settings)
    except ValueError as error:
        raise ValueError(f"{spec.text!r}: {error}") from None
