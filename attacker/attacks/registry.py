"""Attacks by spec: ``inverting-gradients:iterations=600,restarts=2``, or ``package.module:Class`` for anyone's own."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Final

from attacker.attacks.adaptive.specs import matching_settings
from attacker.attacks.base import Attack
from attacker.attacks.gradient_matching.attack import GradientMatching
from attacker.attacks.gradient_matching.options import OPTIONS
from attacker.attacks.gradient_matching.presets import PRESETS
from attacker.attacks.registration import ATTACKS, AttackEntry, check_kind, entry_of_class, register_attack
from fl_precode.import_path import is_import_path, load, split_path
from fl_precode.spec import Spec, parse_spec, spec_name

__all__ = ["ATTACKS", "HELD", "AttackEntry", "attack_title", "build_attack", "entry_of"]

HELD: Final[dict[str, Attack]] = {}
"""Attacks that were given as objects and that no spec describes, under specs of their own: in this process alone."""

_NOUN: Final = "attack"
_SETTINGS = tuple(OPTIONS)
# What makes DLG and iDLG the methods they are is not for the spec to change.
_DLG_SETTINGS = (
    "iterations",
    "learning_rate",
    "restarts",
    "history",
    "converged_below",
    "start",
    "stop_below",
    "plateau",
    "image_norm",
)
_FIXED_BY_SEE_THROUGH = ("optimiser", "history", "labels")
_SEARCHES = frozenset({"batch-size"})


def _by_preset(kind: type[Attack], spec: Spec) -> Attack:
    """Gradient matching by the settings that have the attack's name, or by those that the spec names."""
    del kind
    return matching_settings(PRESETS[spec.choice("preset", tuple(PRESETS), spec.name)], spec)


register_attack(
    "inverting-gradients",
    title="Inverting Gradients",
    description="cosine gradient matching by signed Adam with total variation, any model",
    source="Geiping et al., NeurIPS 2020",
    build=_by_preset,
    options=lambda _kind: ("preset", *_SETTINGS),
    needs=_SEARCHES,
    rank=200,
    portfolio=6,
    colour="#94a3b8",
)(GradientMatching)
register_attack(
    "idlg",
    title="iDLG",
    description="as DLG with labels granted or recovered first, smooth models",
    source="Zhao, Mopuri, Bilen, arXiv 2001.02610",
    build=_by_preset,
    options=lambda _kind: _DLG_SETTINGS,
    needs=_SEARCHES,
    rank=210,
    cost_of_iteration=1.2,
)(GradientMatching)
register_attack(
    "dlg",
    title="DLG",
    description="squared-distance gradient matching by L-BFGS, labels optimised with the images, smooth models",
    source="Zhu, Liu, Han, NeurIPS 2019",
    build=_by_preset,
    options=lambda _kind: _DLG_SETTINGS,
    needs=_SEARCHES,
    rank=220,
    cost_of_iteration=1.5,
    portfolio=5,
    colour="#a16207",
)(GradientMatching)
register_attack(
    "see-through-gradients",
    title="See Through Gradients",
    description="squared-distance matching with BatchNorm statistics and agreement of restarts as priors",
    source="Yin et al., CVPR 2021",
    build=_by_preset,
    options=lambda _kind: tuple(name for name in _SETTINGS if name not in _FIXED_BY_SEE_THROUGH),
    needs=_SEARCHES | {"buffers"},
    rank=230,
)(GradientMatching)
register_attack(
    "statistics-matching",
    title="Inverting Gradients with the batch's statistics",
    description="gradient matching beside the statistics of the batch, which follow from BatchNorm buffers sent back",
    source="Geiping et al., NeurIPS 2020; Huang et al., NeurIPS 2021",
    build=_by_preset,
    options=lambda _kind: _SETTINGS,
    needs=_SEARCHES | {"buffers"},
    rank=205,
    cost_of_iteration=1.3,
)(GradientMatching)


def entry_of(attack: str) -> AttackEntry:
    """The entry of an attack, by name or spec; of an import path the class is imported.

    Raises:
        KeyError: If there is none; see `build_attack` for an error that teaches.
        ValueError: If an import path leads to no attack.
    """
    if attack in HELD:
        return _entry_of_kind(type(HELD[attack]))
    name = spec_name(attack)
    return _entry_of_kind(_kind_at(name)) if name not in ATTACKS and is_import_path(name) else ATTACKS[name]


def attack_title(attack: str) -> str:
    """An attack's name for people, without its settings; nothing is imported for it.

    >>> attack_title("inverting-gradients:iterations=100"), attack_title("my_app.attacks:Mine(steps=3)")
    ('Inverting Gradients', 'Mine')
    """
    name = spec_name(attack)
    entry = ATTACKS.get(name)
    kind = type(HELD[attack]) if attack in HELD else _loaded(name)
    if entry is None and kind is not None:
        entry = _entry_of_kind(kind)
    return (entry.title if entry is not None else "") or name.rpartition(":")[2]


def build_attack(spec: str) -> Attack:
    """The attack that a spec names, with its settings.

    Args:
        spec: ``name`` or ``name:key=value,key=value``. ``inverting-gradients`` takes `OPTIONS` of gradient matching
            and ``preset``, one of `PRESETS`, whose values the other options replace. ``package.module:Class`` or
            ``package.module:Class(key=value)`` for a class that is no plug-in.

    Raises:
        ValueError: If the attack or an option does not exist (the message lists those that do), or a value is out of
            its range.

    >>> build_attack("inverting-gradients:preset=precode-paper,restarts=2").restarts
    Restarts(count=2, halving=0)
    """
    if spec in HELD:
        return HELD[spec]
    if is_import_path(spec) and spec.partition(":")[0] not in ATTACKS:
        return _built_at(spec)
    parsed = parse_spec(spec)
    if parsed.name not in ATTACKS:
        raise ValueError(ATTACKS.why_unknown(parsed.name))
    entry = ATTACKS[parsed.name]
    parsed.check_options(entry.options)
    return entry.build(parsed)


def _built_at(spec: str) -> Attack:
    """The attack of a class that an import path names."""
    _, _, settings = split_path(spec, _NOUN)
    kind = _kind_at(spec)
    try:
        attack: Attack = kind(**settings)
        return attack
    except Exception as error:
        raise ValueError(f"attack {spec!r}: {type(error).__name__}: {error}") from error


def _kind_at(spec: str) -> Any:
    kind = load(spec, _NOUN)
    try:
        check_kind(kind)
    except TypeError as error:
        raise ValueError(f"attack {spec!r}: {error}") from None
    return kind


def _loaded(place: str) -> type[Attack] | None:
    """The class of a place whose module this process has: records come from anywhere, and name what they like."""
    module, _, attribute = place.partition(":")
    kind: Any = sys.modules.get(module)
    for name in attribute.split("."):
        kind = getattr(kind, name, None)
    return kind if isinstance(kind, type) and issubclass(kind, Attack) else None


def _entry_of_kind(kind: type[Attack]) -> AttackEntry:
    registered: Mapping[str, AttackEntry] = kind.__dict__.get("registered", {})
    return next(iter(registered.values()), None) or entry_of_class(kind.__name__, kind, "")
