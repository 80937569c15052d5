"""Canaries in real messages: in the reference app, in an app of one's own, and where they are dropped."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvg

from attacker.audit.verdict.integrity import contradictions
from attacker.report.page import render_page
from fl_precode.flower import Interceptor, canary_mod
from fl_precode.flower.mods import gradient_defence_mod
from fl_precode.flower.truth import record_truth
from fl_precode.privacy.robustness import gaussian_epsilon, most_successes_gaussian
from fl_precode.tape import Tape, TapeWriter
from tests.attacker.audits import audit_tape
from tests.server.own_app import SPEC, client_app, run
from tests.server.test_mods import ask, sgd_app

SECRET = "that no server may know"
CANARIES = "count=200,norm=1"
NOISE = "clip:max_norm=1+noise:std=0.01"


def names_of(record):
    return {flag.name for flag in record.flags}


def test_the_reference_app_measures_what_its_noise_gives(run_locally, tmp_path):
    tape = tmp_path / "tape"
    _, out = run_locally(
        model=SPEC, defence="dp:max_norm=1,noise_multiplier=0.5", canaries="count=400,norm=1", tape=str(tape),
        num_clients=2, num_server_rounds=2,
    )  # fmt: skip
    assert SECRET not in (tape / "tape.json").read_text()
    record = audit_tape(tape, out=tmp_path / "audit", evaluation=out / "evaluation.json", attacks=["first-layer"])
    (canaries,), (bound,) = record.canaries, record.bounds
    assert (canaries.updates, canaries.scored, canaries.unit, canaries.lost) == (4, 1600, "image", 0)
    assert 1.5 < canaries.mu < canaries.mu_seen < canaries.mu_most < 2.5
    assert bound.formula == pytest.approx(gaussian_epsilon(2.0, 1e-5))
    assert bound.formula / 2 < canaries.epsilon < 1.1 * bound.formula
    assert 0 < canaries.counted < bound.formula
    assert bound.most == pytest.approx(most_successes_gaussian(bound.prior, 2 * 2**0.5)), "of two rounds"
    assert "no epsilon claimed, formula 10, audited at least" in bound.sentence
    assert "any attack at most" in bound.sentence
    assert names_of(record) >= {"canaries-present"}
    assert not names_of(record) & {"canaries-missing", "above-the-bound"}
    assert contradictions(record) == []
    page = render_page(record, tmp_path / "audit")
    assert "audited at least" in page


def test_canary_images_of_the_reference_app_refute_what_counted_guesses_can(run_locally, tmp_path):
    found = {}
    for name, defence in (
        ("noisy", "dp:max_norm=1,noise_multiplier=0.05"),
        ("hidden", "dp:max_norm=1,noise_multiplier=99"),
    ):
        tape = tmp_path / name / "tape"
        _, out = run_locally(
            model="lenet:activation=relu", defence=defence, canaries="count=200,as=images,round=1", tape=str(tape),
            num_clients=1, num_server_rounds=1,
        )  # fmt: skip
        attacks = ["layerwise-inversion"]
        record = audit_tape(tape, out=tmp_path / name / "audit", evaluation=out / "evaluation.json", attacks=attacks)
        (found[name],) = record.canaries
        (bound,) = record.canaries
        assert ("canaries-missing" in names_of(record)) is (bound.epsilon == 0)
        assert contradictions(record) == []
    noisy, hidden = found["noisy"], found["hidden"]
    assert (noisy.scored, noisy.unit, noisy.mu, noisy.gaussian) == (200, "image", None, None)
    assert 1 < noisy.epsilon == noisy.counted < gaussian_epsilon(20.0, 1e-5)
    assert "canaries-images" in noisy.codes
    # Chance alone refutes a little in one of twenty runs.
    assert hidden.epsilon < 1
    assert ("canaries-unseen" in hidden.codes) is (hidden.epsilon == 0)


def test_a_mod_has_no_images_to_put_canaries_among():
    with pytest.raises(ValueError, match="with_canary_images"):
        canary_mod("count=5,as=images", secret=SECRET)


def own_run(folder, *mods, canaries=CANARIES):
    return run(folder, client_app(record_truth, mods=mods), canaries=canaries)


def audited(tape, folder, secret=SECRET, defence=NOISE):
    return audit_tape(tape, out=folder / "audit", defence=defence, attacks=["first-layer"], canary_secret=secret)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guarded")
    return own_run(folder, gradient_defence_mod(NOISE, seed=1), canary_mod("count=200,norm=100", secret=SECRET),
                   canaries="count=200,norm=100")  # fmt: skip


def test_an_own_app_behind_a_clip_and_noise(guarded, tmp_path):
    record = audited(guarded, tmp_path)
    (canaries,), (bound,) = record.canaries, record.bounds
    assert canaries.unit == "client"
    assert gaussian_epsilon(100.0, 1e-5) / 2 < canaries.epsilon < bound.formula
    assert "canaries-clipped" in canaries.codes
    assert "take the place of most of the update" in " ".join(canaries.notes)


def test_without_the_secret_nothing_is_stated_and_with_another_no_false_bound(guarded, tmp_path):
    (canaries,) = audited(guarded, tmp_path, secret=None).canaries
    assert (canaries.epsilon, canaries.codes) == (None, ["canaries-secret-unknown"])
    record = audited(guarded, tmp_path, secret="of another federation")
    assert "canaries-outside" in record.canaries[0].codes
    assert record.canaries[0].mu < 0.5, "10 with the right secret"
    assert "canaries-missing" in names_of(record)


def test_canaries_that_the_app_drops_are_named_and_bound_nothing(tmp_path):
    tape = own_run(tmp_path, gradient_defence_mod(NOISE, seed=1))  # the clients have no canary_mod
    record = audited(tape, tmp_path)
    assert record.canaries[0].epsilon == 0
    assert "the app drops them" in " ".join(record.canaries[0].notes)
    assert "canaries-missing" in names_of(record)
    assert "audited at least 0," in record.bounds[0].sentence or "audited at least 0;" in record.bounds[0].sentence


def test_clients_that_drop_their_canaries_are_named_one_by_one(tmp_path):
    mod = canary_mod(CANARIES, secret=SECRET)

    def some(message, context, call_next):
        kept = context.node_config["partition-id"] != 1
        return mod(message, context, call_next) if kept else call_next(message, context)

    record = audited(own_run(tmp_path, some), tmp_path, defence="none")
    (canaries,) = record.canaries
    silent = {entry.node for entry in Tape(tmp_path / "tape").entries if entry.node[-1] == "1"}
    assert {text.rpartition(" ")[2] for text in canaries.silent} == silent
    assert "canaries-silent" in canaries.codes
    # Without noise the guesses alone bound epsilon, and no formula does.
    assert canaries.gaussian is None
    assert 1 < canaries.epsilon < 8
    assert "no epsilon by formula" in record.bounds[0].sentence
    assert record.bounds[0].codes == ["bound-without-mechanism"]


def test_the_mod_adds_canaries_to_parameters_alone():
    (plain,), (changed,) = (
        ask(sgd_app(), config={"server-round": 1}),
        ask(sgd_app(canary_mod("count=5,norm=1", secret=SECRET)), config={"server-round": 1}),
    )
    before, after = ({n: a.numpy() for n, a in one.content["arrays"].items()} for one in (plain, changed))
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved <= {"body.weight", "body.bias"}
    assert moved


def test_the_mod_refuses_what_would_measure_nothing():
    with pytest.raises(ValueError, match="at least 16 characters"):
        canary_mod(CANARIES, secret="short")
    with pytest.raises(ValueError, match="at least one canary"):
        canary_mod("count=0", secret=SECRET)
    (reply,) = ask(sgd_app(canary_mod(CANARIES, secret=SECRET)), config={})
    assert "server-round" in reply.error.reason


def test_the_interceptor_announces_canaries_that_exist_and_leaves_a_writer_alone(tmp_path):
    Interceptor(FedAvg(), tmp_path / "one", canaries=CANARIES)
    assert Tape(tmp_path / "one").header.settings == {"canaries": CANARIES}
    with pytest.raises(ValueError, match="at least one canary"):
        Interceptor(FedAvg(), tmp_path / "two", canaries="count=0")
    writer = TapeWriter(tmp_path / "three", Tape(tmp_path / "one").header)
    with pytest.raises(ValueError, match="for a new tape"):
        Interceptor(FedAvg(), writer, canaries=CANARIES)
