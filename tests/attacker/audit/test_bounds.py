"""What an audit says of bounds: the prior that is measured, the figure beside the rate, and what contradicts it."""

from __future__ import annotations

import math
from importlib.metadata import version

import pytest

from attacker.audit.record.privacy import CanaryAudit
from attacker.audit.verdict.bounds import bounds
from attacker.audit.verdict.finish import finish_record
from attacker.audit.verdict.integrity import contradictions
from attacker.report.page import render_page
from fl_precode.privacy.robustness import gaussian_epsilon, most_successes_gaussian
from tests.attacker.audit.test_flags import facts
from tests.attacker.records import PLAIN, each, federation, record, summary, told

DP = "dp:max_norm=1,noise_multiplier=2"
LOCAL = "local-dp:clip=1,sensitivity=1e-4,epsilon=10,delta=1e-5"


def audited(defence=DP, back=0, **changes):
    """64 victims of one federation, of which this many were reconstructed."""
    return told([federation("f1", defence, **changes)], [summary("f1", PLAIN, back, 64)])


def canaries(epsilon, **changes):
    content = {
        "federation": "f1", "canaries": 1000, "norm": 1.0, "updates": 4, "scored": 4000, "lost": 0, "silent": [],
        "unit": "image", "delta": 1e-5, "mu": 0.4, "mu_seen": 0.5, "mu_most": 0.6, "gaussian": epsilon, "guesses": 800,
        "right": 500, "counted": 0.1, "epsilon": epsilon,
    }  # fmt: skip
    return CanaryAudit.model_validate(content | changes)


def flagged(found):
    return {flag.name for flag in finish_record(found).flags}


def test_the_bound_goes_by_the_measured_prior_and_by_all_rounds():
    (bound,) = bounds(audited())  # two rounds, one step each
    assert bound.prior_seen == 0
    assert bound.prior == pytest.approx(0.0566, abs=1e-3), "none of 64, the upper end of its interval"
    assert bound.most == pytest.approx(most_successes_gaussian(bound.prior, 0.5 * 2**0.5))
    assert (bound.formula, bound.composed) == (gaussian_epsilon(0.5, 1e-5), gaussian_epsilon(0.5 * 2**0.5, 1e-5))
    assert (bound.attack, bound.measured, bound.least) == (PLAIN, 0.0, 0.0)
    (wide,) = bounds(audited(rounds=200))
    assert bound.most < wide.most


def test_local_steps_are_releases_of_their_own_and_have_to_be_known():
    (one,), (many,) = bounds(audited(facts=facts(steps=1))), bounds(audited(facts=facts(steps=9)))
    assert many.mu == pytest.approx(3 * one.mu)
    (unknown,) = bounds(audited(facts=facts(steps=None)))
    assert (unknown.most, unknown.codes) == (None, ["bound-without-steps"])


def test_guesses_that_reach_the_threshold_raise_the_bound():
    rows = each("f1", PLAIN)
    guessed = [row.model_copy(update={"guess_ssim": 0.7 if i < 32 else 0.1}) for i, row in enumerate(rows)]
    found = record([federation("f1", DP)], [summary("f1", PLAIN, 0, 64)], results=guessed)
    (bound,) = bounds(found)
    assert bound.prior_seen == 0.5
    assert bound.prior > 0.5
    assert bound.most > bounds(audited())[0].most


def test_a_rate_above_the_bound_is_flagged_and_one_that_may_be_chance_is_not():
    (bound,) = bounds(audited())
    allowed = int(64 * bound.most)
    assert "above-the-bound" not in flagged(audited(back=allowed + 4))
    assert "above-the-bound" in flagged(audited(back=64))
    finished = finish_record(audited(back=64))
    assert contradictions(finished) == []
    (sentence,) = [flag.sentence for flag in finished.flags if flag.name == "above-the-bound"]
    assert "allows any attack" in sentence


def test_the_platforms_defaults_say_what_they_are_worth(tmp_path):
    found = audited(LOCAL)
    (bound,) = bounds(found)
    assert (bound.claimed, bound.unit) == (10, "client")
    assert bound.formula == pytest.approx(2.13e8, rel=0.01)
    assert bound.most == 1.0
    assert "claimed 10, formula 2.13e8, not audited by canaries; any attack at most 100 %" in bound.sentence
    with_canaries = finish_record(found.model_copy(update={"canaries": [canaries(87_123.0, unit="client")]}))
    assert "claim-refuted" in {flag.name for flag in with_canaries.flags}
    page = render_page(with_canaries, tmp_path)
    assert "audited at least 8.71e4" in page
    assert "500 of 800" in page


def test_canaries_that_stay_below_refute_nothing_and_those_above_the_formula_do():
    found = audited()
    for epsilon, refuted in ((0.5, False), (100.0, True)):
        names = flagged(found.model_copy(update={"canaries": [canaries(epsilon)]}))
        assert ("claim-refuted" in names) is refuted
        assert "canaries-present" in names


def test_a_claim_without_a_mechanism_has_no_formula_and_no_bound():
    empty = "local-dp:clip=1,sensitivity=0,epsilon=10,delta=1e-5"
    for defence in (empty, "clip:max_norm=1", "prune:share=0.9"):
        found = audited(defence)
        assert bounds(found) == [], "nothing is promised and nothing measured"
        (bound,) = bounds(found.model_copy(update={"canaries": [canaries(3.0, gaussian=None)]}))
        assert (bound.formula, bound.most, bound.codes) == (None, None, ["bound-without-mechanism"])
        assert "no epsilon by formula, audited at least 3; no bound on attacks" in bound.sentence


@pytest.mark.parametrize(
    ("defence", "changes", "code"),
    [
        (DP, {"noise_from_seed": True}, "bound-noise-from-seed"),
        ("clip:max_norm=1+noise:std=1", {"statistics": 3}, "bound-beside-statistics"),
    ],
)
def test_what_lies_beside_the_noise_leaves_no_bound(defence, changes, code):
    (bound,) = bounds(audited(defence, **changes))
    assert (bound.most, bound.codes) == (None, [code])


def test_laplace_noise_behind_a_clip_has_a_bound_without_delta():
    spec = "clip:max_norm=1+laplace:std=100"
    (bound,) = bounds(audited(spec, parameters=100))  # two rounds
    epsilon = 100**0.5 / (100 / 2**0.5)
    assert (bound.unit, bound.delta, bound.mu) == ("client", 0, None)
    assert (bound.formula, bound.composed) == (pytest.approx(epsilon), pytest.approx(2 * epsilon))
    assert bound.most == pytest.approx(
        min(math.exp(2 * epsilon) * bound.prior, 1 - math.exp(-2 * epsilon) * (1 - bound.prior))
    )
    assert "any attack at most 7 % of the images in 2 rounds" in bound.sentence
    assert bounds(audited(spec, parameters=100, statistics=3))[0].codes == ["bound-beside-statistics"]
    little = bounds(audited("clip:max_norm=1+laplace:std=1e-9", parameters=10**6))[0]
    assert little.most == 1
    assert contradictions(finish_record(audited(spec, parameters=100))) == []


def test_without_the_truth_no_prior_is_known():
    (bound,) = bounds(record([federation("f1", DP)], [summary("f1", PLAIN, None, 4)]))
    assert (bound.most, bound.measured, bound.codes) == (None, None, ["bound-without-prior"])


def test_an_undefended_federation_has_no_bound_and_its_record_none():
    assert bounds(audited("none")) == []
    assert finish_record(audited("none")).bounds == []


def test_bounds_that_somebody_altered_do_not_follow():
    finished = finish_record(audited())
    (bound,) = finished.bounds
    altered = finished.model_copy(update={"bounds": [bound.model_copy(update={"most": 0.01})]})
    versions = {"fl-precode": version("fl-precode")}
    problem = "its bounds do not follow from its results"
    assert problem not in contradictions(finished.model_copy(update={"versions": versions}))
    assert problem in contradictions(altered.model_copy(update={"versions": versions}))
