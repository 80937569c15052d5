"""Names for people: every defence and attack that exists has one."""

from __future__ import annotations

import pytest

from attacker.attacks import ATTACKS
from attacker.attacks.registry import attack_title
from attacker.report.words import defence_name
from fl_precode.defences import DEFENCES


@pytest.mark.parametrize("name", sorted(set(DEFENCES) - {"dropout"}))
def test_every_defence_has_a_name_for_people(name):
    assert defence_name(name) != name


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_has_a_name_for_people(name):
    assert attack_title(name) != name
