"""Costs that one audit measures are what the next one plans by; nothing else about updates is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from attacker.attacks.base import Outcome, Reconstruction
from attacker.audit.audit import audit
from attacker.audit.federations.federation import open_federations
from attacker.audit.inputs.tape_source import TapeSource
from attacker.audit.planning import kept_costs
from attacker.audit.planning import plan as planner
from attacker.audit.planning.costs import cost
from attacker.audit.planning.kept_costs import ITERATION, Prices, keep, key_of, kind_of, known_prices, learn
from attacker.audit.planning.plan import plan_audit
from attacker.audit.settings import AuditSettings
from fl_precode.places.cache_folder import VARIABLE, cache_folder
from tests.attacker.taped_federation import tape_federation

SEARCH = "inverting-gradients:preset=precode-paper,iterations=4"
SETTINGS = AuditSettings(
    attacks=("first-layer", SEARCH), victims=2, control=False, budget=600.0, leakage=False, candidates=0
)


@pytest.fixture(scope="module")
def tape(tmp_path_factory):
    return tape_federation(tmp_path_factory.mktemp("run"), model="tests.slow_models:slow(seconds=0.0)", rounds=1).tape


@pytest.fixture
def federations(tape, tmp_path):
    return open_federations([TapeSource(tape=tape)], SETTINGS, tmp_path / "controls")


def test_an_iteration_is_measured_once_for_a_machine_and_a_model(federations, monkeypatch):
    measured: list[float] = []

    def measure(*_: object) -> float:
        measured.append(0.25)
        return 0.25

    monkeypatch.setattr(planner, "measure_unit", measure)
    first, again = plan_audit(federations, SETTINGS), plan_audit(federations, SETTINGS)
    assert len(measured) == 1
    assert [one.expected_seconds for one in first] == [one.expected_seconds for one in again]
    search = next(one for one in first if one.attack == SEARCH)
    assert search.expected_seconds == pytest.approx(0.25 * cost(SEARCH) * 2)
    plan_audit(federations, replace(SETTINGS, threads=2))
    assert len(measured) == 2, "with other threads it costs something else"


def test_what_attacks_really_took_is_what_they_are_expected_to_take_next_time(federations, tape, tmp_path):
    audit([TapeSource(tape=tape)], SETTINGS, out=tmp_path / "audit")
    prices = known_prices(key_of(federations[0], SETTINGS))
    assert {"first-layer", "inverting-gradients:precode-paper"} == {*prices.learnt}
    planned = {one.attack: one for one in plan_audit(federations, SETTINGS)}
    assert planned[SEARCH].expected_seconds == pytest.approx(2 * (prices.seconds(SEARCH) or 0))
    assert prices.seconds(SEARCH) != pytest.approx((prices.unit or 0) * cost(SEARCH))


def test_what_was_cut_or_failed_teaches_nothing(federations):
    key = key_of(federations[0], SETTINGS)
    done = Reconstruction(inputs=None, labels=None, outcome=Outcome.CONVERGED, seconds=2.0)
    (planned,) = [one for one in plan_audit(federations, SETTINGS) if one.attack == SEARCH]
    files = [entry.file for entry in federations[0].entries]
    for second in (replace(done, cut=True), replace(done, outcome=Outcome.FAILED)):
        found = {("f1", SEARCH, file): one for file, one in zip(files, (done, second), strict=True)}
        learn(federations, [planned], found, SETTINGS)
        assert kind_of(SEARCH) not in known_prices(key).learnt
    learn(federations, [planned], {("f1", SEARCH, file): done for file in files}, SETTINGS)
    assert known_prices(key).seconds(SEARCH) == pytest.approx(2.0)
    learn(federations, [planned], {("f1", SEARCH, file): replace(done, seconds=4.0) for file in files}, SETTINGS)
    assert known_prices(key).seconds(SEARCH) == pytest.approx(3.0), "one busy hour does not decide alone"


def test_the_file_holds_digests_and_seconds_alone():
    keep("digest", {ITERATION: 0.5, "dlg": float("nan"), "idlg": -1.0})
    content = json.loads((cache_folder() / "costs.json").read_text())
    assert content == {"version": 1, "costs": {"digest": {ITERATION: 0.5}}}
    assert known_prices("digest") == Prices(unit=0.5)
    assert known_prices("other") == Prices()
    assert Prices().seconds("dlg") is None
    assert Prices(unit=0.5).seconds("first-layer", steps=5) == pytest.approx(0.1 * cost("first-layer"))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1, "costs": {"a": {"b": "c"}}}', '{"version": 9}'])
def test_a_file_that_cannot_be_read_costs_no_more_than_measuring_anew(text):
    cache_folder().mkdir(parents=True)
    (cache_folder() / "costs.json").write_text(text)
    assert known_prices("digest") == Prices()
    keep("digest", {ITERATION: 2.0})
    assert known_prices("digest").unit == 2.0


def test_a_cache_folder_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file"))
    keep("digest", {ITERATION: 1.0})
    assert known_prices("digest") == Prices()


def test_old_kinds_of_updates_make_room_for_new_ones(monkeypatch):
    monkeypatch.setattr(kept_costs, "_MOST_KEPT", 2)
    for key in ("a", "b", "a", "c"):
        keep(key, {ITERATION: 1.0})
    assert [known_prices(key).unit for key in ("a", "b", "c")] == [1.0, None, 1.0]


def test_the_cache_folder_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_folder() == tmp_path
    monkeypatch.delenv(VARIABLE)
    assert cache_folder() == Path("/elsewhere/fl-precode")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path.home() / ".cache" / "fl-precode"
