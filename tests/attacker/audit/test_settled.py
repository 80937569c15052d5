"""Where formulas reconstruct every image, attacks that would change no verdict are left out, and the record says so."""

from __future__ import annotations

import pytest

from attacker.attacks.registry import ATTACKS, entry_of
from attacker.audit.audit import audit
from attacker.audit.inputs.tape_source import TapeSource
from attacker.audit.planning import plan as planner
from attacker.audit.settings import AuditSettings
from tests.attacker.taped_federation import tape_federation

PLANNED = {"victims": 2, "leakage": False, "candidates": 0, "budget": 30.0}


@pytest.fixture(scope="module")
def mlp(tmp_path_factory):
    return tape_federation(tmp_path_factory.mktemp("mlp"), rounds=1)


@pytest.fixture(scope="module")
def behind_precode(tmp_path_factory):
    return tape_federation(tmp_path_factory.mktemp("precode"), model="lenet", defence="precode:latent=8", rounds=1)


@pytest.fixture(scope="module", autouse=True)
def cheap():
    """Iterations are so cheap that everything fits into a plan, and searches are cut by nothing but their number."""
    every = planner._every
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("attacker.audit.planning.plan.measure_unit", lambda *_: 1e-6)
        patched.setattr("attacker.audit.planning.plan.LADDER", (2,))
        # Attacks that other tests registered in this process, which workers do not know.
        own = [name for name in ATTACKS if not name.startswith("test-")]
        patched.setattr(planner, "_every", lambda subject: [name for name in every(subject) if name in own])
        yield


@pytest.fixture(scope="module")
def precode_record(behind_precode, tmp_path_factory, cheap):
    return audited(behind_precode, tmp_path_factory.mktemp("record") / "audit")


def audited(taped, out, *, said=None, workers=1, truth=True, **changes):
    settings = AuditSettings(**{**PLANNED, **changes})
    say = None if said is None else said.append
    return audit([TapeSource(tape=taped.tape)], settings, out=out, workers=workers, truth=truth, say=say)


def statuses(record, federation="f1"):
    return {one.attack.partition(":")[0]: one.status for one in record.plan if one.federation == federation}


@pytest.mark.parametrize("truth", [True, False])
def test_no_search_follows_a_formula_that_the_updates_confirm(mlp, tmp_path, truth):
    said: list[str] = []
    record = audited(mlp, tmp_path / "audit", said=said, truth=truth)
    found = statuses(record)
    assert found["first-layer"] == "run"
    searches = [name for name, status in found.items() if status == "settled"]
    assert {"inverting-gradients", "dlg", "hybrid"} <= set(searches)
    assert not any(entry_of(name).exact for name in searches)
    assert {row.attack for row in record.results} & set(searches) == set()
    (why, *_) = [one.why for one in record.plan if one.status == "settled"]
    assert "settled" in why.codes
    assert "would change no verdict" in why
    assert any(sentence.endswith("they would change no verdict.") for sentence in said)
    assert not any("budget ended" in sentence for sentence in said)
    if truth:
        assert [one.verdict for one in record.verdicts] == ["leaks"]
        assert not any(flag.name == "attack-left-out" for flag in record.flags)


def test_attacks_that_are_named_all_run(mlp, tmp_path):
    record = audited(mlp, tmp_path / "audit", attacks=("first-layer", "dlg:iterations=2"))
    assert set(statuses(record).values()) == {"run"}
    assert len(record.results) == 4


def test_behind_a_defence_that_only_adaptive_formulas_pass_plain_attacks_are_still_tried(precode_record):
    found = {one.attack.partition(":")[0]: one for one in precode_record.plan if one.federation == "f1"}
    assert found["through-bottleneck"].status == "run"
    assert {one.role for one in found.values() if one.status == "settled"} == {"adaptive"}
    assert found["inverting-gradients"].status == "run"
    control = statuses(precode_record, "f1-control")
    assert set(control.values()) <= {"settled", "not_applicable"}
    assert [one.verdict for one in precode_record.verdicts if one.federation == "f1"] == [
        "leaks to an adaptive attacker"
    ]


def test_formulas_that_noise_spoils_settle_nothing(tmp_path):
    noisy = tape_federation(tmp_path, defence="noise:std=0.1", rounds=1, perturbed=True)
    record = audited(noisy, tmp_path / "audit", control=False)
    assert "settled" not in statuses(record).values()


def test_a_truth_that_the_formula_misses_keeps_the_searches(mlp, tmp_path, monkeypatch):
    monkeypatch.setattr("attacker.audit.scoring.settled.counted_images", lambda *_: [False, False])
    assert "settled" not in statuses(audited(mlp, tmp_path / "audit")).values()


def test_several_processes_leave_out_the_same(behind_precode, precode_record, tmp_path):
    two = audited(behind_precode, tmp_path / "two", workers=2)
    assert [(entry.attack, entry.status, entry.updates) for entry in precode_record.plan] == [
        (entry.attack, entry.status, entry.updates) for entry in two.plan
    ]
