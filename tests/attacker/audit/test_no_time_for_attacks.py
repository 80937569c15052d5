"""Where a budget has no time for any attack, an audit tells what it can; where it has none at all, it is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from attacker.audit.audit import _if_any_fits, _worth_their_start
from attacker.audit.record.evidence import PlannedAttack
from attacker.audit.settings import AuditSettings
from attacker.audit.verdict.verdict import verdicts
from tests.attacker.records import federation, record

LONG = PlannedAttack(
    federation="f1", attack="dlg", role="plain", status="over_budget", reason="expected to take longer", updates=4,
    iterations=100, expected_seconds=2.6e4,
)  # fmt: skip


@pytest.mark.parametrize("left", [None, 0.0, 0.9])
def test_a_budget_of_nothing_is_refused_and_names_the_shortest_attack(left):
    with pytest.raises(ValueError, match="no room for any attack: .* and the shortest, dlg, is expected"):
        _if_any_fits([LONG], AuditSettings(budget=1), SimpleNamespace(planned=lambda: left))


def test_with_time_for_labels_an_audit_goes_on_and_says_why_no_attack_was_begun():
    assert _if_any_fits([LONG], AuditSettings(budget=150), SimpleNamespace(planned=lambda: 99.0)) == [LONG]
    (found,) = verdicts(record([federation("f1")], [], plan=[LONG]))
    assert found.verdict == "not known"
    assert "none that fits is expected to end within the budget: give a larger --budget" in found.sentence
    unfit = LONG.model_copy(update={"status": "not_applicable", "expected_seconds": None})
    (other,) = verdicts(record([federation("f1")], [], plan=[unfit]))
    assert "none of those that were considered applies to it; the plan says why" in other.sentence
    (asked,) = verdicts(record([federation("f1")], []))
    assert "(none was asked for)" in asked.sentence


@pytest.mark.parametrize(
    ("opened", "expected", "workers"),
    [(20.0, 30.0, 1), (20.0, 50.0, 2), (0.5, 0.1, 2), (6.0, None, 2)],
    ids=["opened longer than is saved", "more is saved", "a small tape", "nobody knows"],
)
def test_workers_that_would_save_less_than_opening_a_large_tape_again_takes_are_not_begun(opened, expected, workers):
    planned = [LONG, LONG.model_copy(update={"status": "run", "expected_seconds": expected})]
    assert _worth_their_start(2, planned, opened) == workers
