"""What an audit says of a run whose noise the server can draw again."""

from __future__ import annotations

import json

import pytest

from attacker.audit.inputs.noise_source import noise_from_a_seed, privacy_of
from attacker.audit.verdict.flags import flags
from attacker.audit.verdict.verdict import verdicts
from attacker.report.page import render_page
from fl_precode.federation.config import Settings
from tests.attacker.audit.test_verdict import HELD, PAIR
from tests.attacker.audits import audit_tape
from tests.attacker.records import federation, told
from tests.attacker.taped_federation import tape_federation

SPENT = {"epsilon": 1.5, "delta": 1e-5, "sample_rate": 0.1, "steps": 3, "note": "proved for Poisson sampling"}
DP = "dp:max_norm=1,noise_multiplier=1"
OLD = {key: value for key, value in Settings().to_run_config().items() if key != "seeded-noise"}


@pytest.mark.parametrize(
    ("defence", "settings", "seeded"),
    [
        ("precode", {"seeded-noise": True}, True),
        ("clip:max_norm=1+noise:std=1", {"seeded-noise": True}, True),
        ("clip:max_norm=1+prune:share=0.9", {"seeded-noise": True}, False),  # it draws nothing
        ("precode", {"seeded-noise": False}, False),
        (DP, OLD, True),  # the reference federation before it could choose
        (DP, {}, False),  # another app: nothing is known of a seed
        ("unknown", {"seeded-noise": True}, False),
    ],
)
def test_which_noise_can_be_drawn_again(defence, settings, seeded):
    assert noise_from_a_seed(defence, settings) is seeded


def test_an_epsilon_of_seeded_noise_does_not_get_into_the_told():
    honest = privacy_of(DP, {"seeded-noise": False}, {"privacy": SPENT})
    assert (honest.epsilon, honest.note) == (1.5, SPENT["note"])
    void = privacy_of(DP, OLD, {"privacy": SPENT})
    assert void.epsilon is None
    assert "whoever has that seed" in void.note
    assert privacy_of(DP, {}, {}) is None
    assert privacy_of(DP, {}, {"privacy": {"epsilon": "much"}}) is None


def test_no_verdict_says_held_of_noise_that_the_server_can_take_away():
    held = told(PAIR, HELD)
    assert {one.federation: one.verdict for one in verdicts(held)}["f2"] == "held against everything tried"
    seeded = told([PAIR[0], federation("f2", "precode", noise_from_seed=True)], HELD)
    seeded = seeded.model_copy(update={"flags": flags(seeded)})
    assert [one.name for one in seeded.flags] == ["noise-from-a-seed"]
    (found,) = [one for one in verdicts(seeded) if one.federation == "f2"]
    assert found.verdict == "not shown to leak"
    assert "drawn from a seed" in found.sentence


@pytest.mark.parametrize("epsilon", [1.5, None])
def test_epsilon_or_the_reason_why_there_is_none_is_in_record_and_page(tmp_path, epsilon):
    taped = tape_federation(tmp_path, rounds=1, defence=DP)
    result = json.loads((tmp_path / "result.json").read_text())
    note = SPENT["note"] if epsilon else "epsilon is not stated: the noise of this run was drawn from a seed"
    (tmp_path / "result.json").write_text(json.dumps(result | {"privacy": SPENT | {"epsilon": epsilon, "note": note}}))
    found = audit_tape(taped.tape, out=tmp_path / "audit", attacks=["first-layer"], victims=1)
    assert found.federations[0].privacy.epsilon == epsilon
    page = render_page(found, tmp_path / "audit")
    assert ("DP-SGD spent epsilon 1.5 at delta 1e-05" in page) is (epsilon is not None)
    assert note in page
