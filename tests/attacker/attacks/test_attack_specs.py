"""What every kind of spec is parsed to, and what contradictory specs are told, as a golden file states it."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from attacker.attacks import ATTACKS, PRESETS, Attack, GradientMatching, Portfolio, build_attack
from attacker.attacks.gradient_matching.options import OPTIONS, options_of

GOLDEN = json.loads(Path(__file__).with_name("attack_specs.json").read_text())
"""Of each spec its settings in which it differs from the attack's own defaults, or the error."""

DEFAULTS = {**OPTIONS, "method": "inverting-gradients"}


def searched(attack: GradientMatching) -> dict[str, Any]:
    """The options of gradient matching that are not those of Inverting Gradients."""
    options = {**options_of(attack), "method": attack.method}
    return {name: value for name, value in options.items() if value != DEFAULTS[name]}


def settings(attack: Attack) -> dict[str, Any]:
    if isinstance(attack, GradientMatching):
        return {"class": "GradientMatching", **searched(attack)}
    if isinstance(attack, Portfolio):
        return {"class": "Portfolio", "members": {one.method: settings(one.attack) for one in attack.members}}
    assert is_dataclass(attack)
    own = {one.name: getattr(attack, one.name) for one in fields(attack)}
    if "matching" in own:
        own["matching"] = searched(own["matching"])
    return {"class": type(attack).__name__, **own}


def parsed(spec: str) -> dict[str, Any]:
    try:
        return {"name": (attack := build_attack(spec)).name, **settings(attack)}
    except ValueError as error:
        return {"error": str(error)}


@pytest.mark.parametrize("spec", GOLDEN)
def test_specs_are_parsed_as_ever(spec):
    assert parsed(spec) == GOLDEN[spec]


def test_the_golden_file_has_every_attack_and_every_preset():
    ours = {name for name in ATTACKS if ATTACKS.place_of(name).startswith("attacker.")}  # other tests add their own
    assert ours
    assert {spec.partition(":")[0] for spec in GOLDEN} >= ours
    assert {f"inverting-gradients:preset={name}" for name in PRESETS} <= GOLDEN.keys()
