"""What a record says of privacy: claimed, by formula, and on the page."""

from __future__ import annotations

import pytest

from attacker.audit.inputs.guarantees import privacy_claims
from fl_precode.privacy import Conditions
from fl_precode.randomness.entropy import NOISE_FROM_A_SEED

TEN = Conditions(rounds=10, numbers=100)
PLATFORM = "local-dp:clip=1,sensitivity=1e-4,epsilon=10,delta=1e-5"


def test_a_record_has_what_is_claimed_beside_the_formula():
    pytest.importorskip("dp_accounting", reason="pip install 'fl-precode[dp]'")
    claims = privacy_claims(PLATFORM, TEN, {})
    assert (claims.claimed_epsilon, claims.claimed_delta, claims.claimed_sensitivity) == (10, 1e-5, 1e-4)
    assert claims.holds
    assert [one.level for one in claims.guarantees] == ["image", "client"]
    assert claims.guarantees[1].classical == pytest.approx(100_000)
    assert claims.guarantees[1].a_round == pytest.approx(2.13e8, rel=0.01)


def test_noise_from_a_seed_guarantees_nothing():
    pytest.importorskip("dp_accounting", reason="pip install 'fl-precode[dp]'")
    claims = privacy_claims(PLATFORM, TEN, {"seeded-noise": True})
    assert not claims.holds
    assert claims.why_not == NOISE_FROM_A_SEED


def test_settings_may_claim_what_no_defence_can_have():
    assert privacy_claims("none", TEN, {}) is None
    assert privacy_claims("unknown", TEN, {"claimed-epsilon": "much"}) is None
    assert privacy_claims("none", TEN, {"claimed-epsilon": -1.0}) is None
    claims = privacy_claims("none", TEN, {"claimed-epsilon": "8", "claimed-delta": 1e-6})
    assert (claims.claimed_epsilon, claims.claimed_delta, claims.holds) == (8, 1e-6, False)
    assert claims.notes == ["epsilon 8 is claimed, and 'none' is no mechanism that could have one"]
    assert privacy_claims("percentile", TEN, {}).why_not.startswith("the percentile filter draws nothing at random")
