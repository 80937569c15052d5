"""What defences guarantee: figures of the accountant against closed forms, and sentences where there is nothing."""

from __future__ import annotations

import math
import sys

import pytest
from scipy.stats import norm

from fl_precode.defences import DEFENCES
from fl_precode.privacy import (
    Claim,
    Conditions,
    GaussianReleases,
    accountant,
    composed_pure,
    mechanism_of,
    privacy_statement,
    weakest_statement,
)

PLATFORM = "local-dp:clip=1,sensitivity=1e-4,epsilon=10,delta=1e-5"
TEN = Conditions(rounds=10, steps=1, batch_size=8, images=500, numbers=15_826)


@pytest.fixture(scope="module")
def figures():
    """Only where the extra `dp` is installed: the figures are dp-accounting's."""
    return pytest.importorskip("dp_accounting", reason="pip install 'fl-precode[dp]'")


def exact_delta(epsilon, mu):
    """Of Gaussian differential privacy (Dong, Roth, Su 2022, corollary 1)."""
    return norm.cdf(-epsilon / mu + mu / 2) - math.exp(epsilon) * norm.cdf(-epsilon / mu - mu / 2)


@pytest.mark.parametrize(("noise_multiplier", "releases"), [(1.0, 1), (4.0, 20), (0.5, 3)])
def test_gaussian_noise_has_its_exact_curve(figures, noise_multiplier, releases):
    curve, mu = (
        GaussianReleases(noise_multiplier=noise_multiplier, releases=releases),
        math.sqrt(releases) / noise_multiplier,
    )
    for epsilon in (0.0, 0.5, 3.0):
        assert curve.delta(epsilon) == pytest.approx(exact_delta(epsilon, mu), rel=1e-9)
    assert exact_delta(curve.epsilon(1e-5), mu) == pytest.approx(1e-5, rel=1e-6)


def test_sampling_gains_and_where_it_cannot_be_counted_is_not(figures):
    sampled = GaussianReleases(noise_multiplier=1.0, releases=100, sampling=0.01)
    assert sampled.counts_sampling
    assert sampled.epsilon(1e-5) == pytest.approx(0.718, abs=0.01)  # PRV and PLD accountants agree on it
    assert sampled.delta(sampled.epsilon(1e-5)) == pytest.approx(1e-5, rel=1e-3)
    little = GaussianReleases(noise_multiplier=4.845e-5, releases=10, sampling=0.1)
    assert not little.counts_sampling
    assert little.epsilon(1e-5) == GaussianReleases(noise_multiplier=4.845e-5, releases=10).epsilon(1e-5)


def test_the_sampled_figure_is_that_of_opacus_too(figures):
    from opacus.accountants import PRVAccountant

    other = PRVAccountant()
    other.history = [(1.1, 0.016, 100)]
    ours = GaussianReleases(noise_multiplier=1.1, releases=100, sampling=0.016).epsilon(1e-5)
    assert ours == pytest.approx(other.get_epsilon(1e-5), abs=0.02)  # its own error bound is 0.01


def test_pure_releases_compose_to_less_than_their_sum(figures):
    assert composed_pure([(0.1, 1)], delta=1e-5) == 0.1
    assert composed_pure([(0.1, 50)], delta=0) == pytest.approx(5.0)
    advanced = 0.1 * math.sqrt(2 * 1_583 * math.log(1e5)) + 1_583 * 0.1 * (math.exp(0.1) - 1)  # Dwork and Roth, 3.20
    assert 0.5 * advanced < composed_pure([(0.1, 1_583)], delta=1e-5) < advanced
    assert composed_pure([(1_000.0, 3)], delta=1e-5) == 3_000
    mixed = composed_pure([(0.1, 1_583), (10.0, 1)], delta=1e-5)
    assert composed_pure([(0.1, 1_583)], delta=1e-5) < mixed <= composed_pure([(0.1, 1_583)], delta=1e-5) + 10.1


def test_the_platforms_defaults_claim_ten_and_have_two_hundred_million(figures):
    statement = privacy_statement(PLATFORM, TEN)
    client, image = statement.of("client"), statement.of("image")
    assert statement.claim == Claim(epsilon=10, delta=1e-5, sensitivity=1e-4)
    assert statement.holds
    assert client.classical == pytest.approx(100_000)
    mu = 1 / 4.844805e-5
    assert client.a_round == pytest.approx(mu**2 / 2 + 4.265 * mu, rel=1e-3)
    assert client.composed == pytest.approx(10 * client.a_round, rel=1e-2)
    assert image.sensitivity == 2 * client.sensitivity == 2
    assert image.a_round > 3.9 * client.a_round
    assert "the stated epsilon 10 does not follow" in " ".join(statement.notes)
    assert "proved for epsilon up to 1 and not for 10" in " ".join(statement.notes)


def test_with_the_right_sensitivity_a_claim_up_to_one_holds(figures):
    statement = privacy_statement("local-dp:clip=1,sensitivity=1,epsilon=1,delta=1e-5", Conditions())
    assert statement.of("client").a_round < 1
    assert statement.of("client").classical == pytest.approx(1)
    assert statement.notes == ("epsilon by dp-accounting",)


def test_noise_counts_behind_a_clip_only(figures):
    own = privacy_statement("clip:max_norm=1+prune:share=0.5+noise:std=1+sign", TEN).of("client")
    assert own.a_round == privacy_statement("clip:max_norm=1+noise:std=1", TEN).of("client").a_round
    assert own.noise_multiplier == 1
    for spec in ("noise:std=1", "noise:std=1+clip:max_norm=1", "clip:max_norm=1+quantise:bits=3+noise:std=1"):
        assert "nothing bounds the update before its noise" in privacy_statement(spec, TEN).why_not
    laplace = privacy_statement("clip:max_norm=1+laplace:std=100", TEN).of("client")
    assert laplace.a_round == pytest.approx(math.sqrt(15_826) / (100 / math.sqrt(2)))
    assert laplace.composed < 10 * laplace.a_round


def test_dp_sgd_protects_images_and_a_client_by_its_batches(figures):
    statement = privacy_statement("dp:max_norm=1,noise_multiplier=1.1", TEN)
    assert statement.of("image").composed == pytest.approx(
        GaussianReleases(noise_multiplier=1.1, releases=10, sampling=8 / 500).epsilon(1e-5)
    )
    assert statement.of("client").noise_multiplier == pytest.approx(1.1 / 8)
    unknown = privacy_statement("dp:max_norm=1,noise_multiplier=1.1", Conditions(rounds=10))
    assert unknown.of("image").composed > statement.of("image").composed
    assert "every image taken to be in every step" in unknown.of("image").note
    assert unknown.of("client").a_round is None
    assert "how many images a step has is not known" in unknown.of("client").note


def test_the_servers_own_noise_is_none_against_the_server(figures):
    statement = privacy_statement("central-dp:clip=1,noise_multiplier=1,clients=10", TEN)
    assert not statement.holds
    assert "the server holds each update before the noise" in statement.why_not
    assert statement.of("client").composed == GaussianReleases(noise_multiplier=1, releases=10).epsilon(1e-5)
    assert "how clients are sampled is not known" in " ".join(statement.notes)
    sampled = privacy_statement("central-dp:clip=1,noise_multiplier=1", Conditions(rounds=10, sampling=0.1))
    assert sampled.of("client").composed < statement.of("client").composed
    assert "sampled" not in " ".join(sampled.notes)


def test_sparse_vectors_have_a_figure_by_composition_that_does_not_hold(figures):
    statement = privacy_statement("svt", TEN)
    assert not statement.holds
    assert "numbers that the filter accepts and does not draw are sent as they are" in statement.why_not
    count, one = math.ceil(1_582.6), statement.of("client")
    assert 0.1 * math.sqrt(count) < one.a_round < 0.1 * count
    assert one.composed > one.a_round
    assert "the stated epsilon 0.1 is that of the threshold" in " ".join(statement.notes)
    assert "how many numbers the update has is not known" in privacy_statement("svt", Conditions()).of("client").note


@pytest.mark.parametrize("name", sorted(DEFENCES.built_in))
def test_every_defence_is_a_mechanism_or_says_why_not(name):
    options = {
        "noise": "std=1", "laplace": "std=1", "ppp": "std=1", "prune": "share=0.5", "clip": "max_norm=1",
        "quantise": "bits=4", "dp": "max_norm=1,noise_multiplier=1", "central-dp": "clip=1",
        "local-dp": "clip=1,sensitivity=1,epsilon=1,delta=1e-5",
    }  # fmt: skip
    spec = f"{'precode+' if name == 'ppp' else ''}{name}{':' + options[name] if name in options else ''}"
    found = mechanism_of(spec)
    if name in ("dp", "local-dp", "svt"):
        assert found.noise > 0
    else:
        assert len(found.why) > 10
        assert "no formula is known" not in found.why
        assert found.why == privacy_statement(spec, TEN).why_not


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("local-dp:clip=1,sensitivity=0,epsilon=10,delta=1e-5", "sensitivity 0 gives noise of standard deviation 0"),
        ("percentile", "the percentile filter draws nothing at random"),
        ("clip:max_norm=1", "clipping alone adds no noise"),
        ("precode", "the noise of PRECODE is drawn inside the model"),
        ("dp:max_norm=1,noise_multiplier=0", "clips and adds no noise"),
        ("unknown", "no defence was announced"),
    ],
)
def test_why_there_is_no_guarantee(spec, sentence):
    statement = privacy_statement(spec, TEN)
    assert sentence in statement.why_not
    assert (statement.holds, statement.guarantees) == (False, ())


def test_a_claim_without_a_mechanism_is_named():
    statement = privacy_statement("prune:share=0.9", TEN, Claim(epsilon=10))
    assert statement.notes == ("epsilon 10 is claimed, and 'prune:share=0.9' is no mechanism that could have one",)
    assert statement.claim == Claim(epsilon=10)


def test_a_delta_above_one_over_the_images_is_named(figures):
    notes = privacy_statement("local-dp:clip=1,sensitivity=1,epsilon=1,delta=0.01", TEN).notes
    assert "delta 0.01 is above 1 over the client's 500 images: a mechanism that sends one of them" in " ".join(notes)


def test_extreme_budgets_have_finite_figures(figures):
    for epsilon in (1e-9, 1e9):
        spec = f"local-dp:clip=1,sensitivity=1,epsilon={epsilon:g},delta=1e-5"
        found = privacy_statement(spec, TEN).of("client")
        assert 0 <= found.a_round <= found.composed < math.inf


def test_of_different_settings_the_weakest_counts(figures):
    strong, weak = "local-dp:clip=1,sensitivity=1,epsilon=1,delta=1e-5", PLATFORM
    both = weakest_statement([strong, weak, strong], TEN)
    assert both.claim == privacy_statement(weak, TEN).claim
    assert both.notes[0].startswith("clients announce 2 different settings")
    assert weakest_statement([strong, "none", weak], TEN).why_not == "no noise is added"
    assert weakest_statement([strong, strong], TEN) == privacy_statement(strong, TEN)
    with pytest.raises(ValueError, match="the defence of one client or more"):
        weakest_statement([], TEN)


def test_conditions_and_curves_are_checked(figures):
    for bad in ({"rounds": 0}, {"delta": 0.0}, {"delta": 1.0}, {"sampling": 0.0}, {"sampling": 1.5}):
        with pytest.raises(ValueError, match="expected"):
            Conditions(**bad)
    for bad in ({"noise_multiplier": 0.0}, {"noise_multiplier": 1.0, "releases": 0}):
        with pytest.raises(ValueError, match="a positive, finite noise_multiplier"):
            GaussianReleases(**bad)
    with pytest.raises(ValueError, match="Gaussian noise reaches no other"):
        GaussianReleases(noise_multiplier=1.0).epsilon(0.0)


def test_without_the_accountant_the_statement_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting.gaussian_mechanism", None)
    accountant._load.cache_clear()
    statement = privacy_statement(PLATFORM, TEN)
    accountant._load.cache_clear()
    assert not statement.holds
    assert statement.of("client").a_round is None
    assert "pip install 'fl-precode[dp]'" in statement.of("client").note
