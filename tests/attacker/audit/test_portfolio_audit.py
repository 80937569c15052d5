"""A portfolio in an audit: the record names the member that found an image, and which attacks are adaptive."""

from __future__ import annotations

from dataclasses import replace

import pytest

from attacker.attacks import Member, Portfolio
from attacker.attacks.registry import ATTACKS, AttackEntry
from tests.attacker.audits import audit_tape
from tests.attacker.members import Raises
from tests.attacker.taped_federation import tape_federation

PORTFOLIO = "portfolio:iterations=2,total_variations=0.01"


@pytest.fixture(scope="module")
def tape(tmp_path_factory):
    return tape_federation(tmp_path_factory.mktemp("run"), rounds=1).tape


def test_results_name_the_member_that_found_them(tape, tmp_path):
    record = audit_tape(tape, out=tmp_path, attacks=["first-layer", PORTFOLIO], victims=1)
    assert [(row.attack, row.method) for row in record.results] == [("first-layer", ""), (PORTFOLIO, "first-layer")]
    assert record.results[0].mse == record.results[1].mse


def test_a_portfolio_of_defects_has_failed(tape, tmp_path):
    broken = Portfolio(members=(Member(method="a", attack=Raises()),))
    with ATTACKS.instead({"broken": AttackEntry(description="raises", source="none", build=lambda spec: broken)}):
        (row,) = audit_tape(tape, out=tmp_path, attacks=["broken"], victims=1).results
    assert (row.outcome, row.reason_codes) == ("failed", ["member", "attack-raised"])


@pytest.mark.parametrize("answers", [frozenset(), frozenset({"precode", "clip"})])
def test_the_registry_says_which_attacks_are_adaptive(tape, tmp_path, answers):
    entry = replace(ATTACKS["first-layer"], answers=answers)
    with ATTACKS.instead({"first-layer": entry}):
        record = audit_tape(tape, out=tmp_path, attacks=["first-layer"], victims=1)
    assert [(one.adaptive, one.answers) for one in record.attacks] == [(bool(answers), sorted(answers))]
