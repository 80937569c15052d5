"""Where an exact attack fits, the plan has it first, and the verdict says that it is exact and why."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from attacker.audit.federations.federation import open_federations
from attacker.audit.inputs.tape_source import TapeSource
from attacker.audit.planning import plan as planner
from attacker.audit.planning.costs import measure_unit
from attacker.audit.planning.plan import plan_audit
from attacker.audit.record.confirmed import confirms
from attacker.audit.scoring import leakage_summary
from attacker.audit.settings import AuditSettings
from attacker.audit.threat_model import BATCH_SIZE, Knowledge
from attacker.report.indices import determined
from tests.attacker.audits import audit_tape, audit_tapes
from tests.attacker.leaking_models import small_photographs
from tests.attacker.taped_federation import tape_federation

UNIT = 0.001
"""Seconds of an iteration, for plans that shall not depend on this machine."""

TRANSFORMER = "tests.attacker.small_transformers:Perceptron"
SMOOTH = "tests.attacker.leaking_models:smooth_mlp"
NORMED = "tests.attacker.leaking_models:normed"
TRAINED = {"learning_rate": 0.05, "local_steps": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("exact")


@pytest.fixture(scope="module")
def guarded(folder):
    """A vision transformer with PRECODE before its head."""
    data = small_photographs(folder)
    return tape_federation(folder / "vit", model=TRANSFORMER, defence="precode:latent=6", dataset=data, rounds=1).tape


@pytest.fixture(scope="module")
def batches(folder):
    """A smooth network, eight images an update."""
    return tape_federation(folder / "mlp", model=SMOOTH, batch_size=8, rounds=1).tape


def planned(tape, folder, monkeypatch=None, **changes):
    settings = AuditSettings(**{"victims": 2, "control": False, **changes})
    federations = open_federations([TapeSource(tape=tape)], settings, folder / "controls")
    if monkeypatch is not None:
        monkeypatch.setattr(planner, "measure_unit", lambda *_: UNIT)
    return federations, settings, [one for one in plan_audit(federations, settings) if one.status == "run"]


@pytest.mark.parametrize("withhold", [(), (BATCH_SIZE,)])
@pytest.mark.parametrize(("victims", "attack"), [("guarded", "patch-embedding"), ("batches", "activation-span")])
def test_the_exact_attack_is_planned_first_for_a_small_share_of_a_search(
    request, tmp_path, monkeypatch, victims, attack, withhold
):
    tape, knowledge = request.getfixturevalue(victims), Knowledge.usual(withhold=withhold)
    *_, found = planned(tape, tmp_path, monkeypatch, knowledge=knowledge, budget=1e6)
    assert found[0].attack == attack
    assert found[0].expected_seconds <= 100 * UNIT * 2
    searches = [one for one in found if one.iterations]
    assert bool(searches) != bool(withhold)
    assert all(one.expected_seconds > 10 * found[0].expected_seconds for one in searches)


def test_what_a_formula_costs_is_known_without_the_number_of_images(batches, tmp_path):
    knowledge = Knowledge.usual(withhold=[BATCH_SIZE])
    federations, settings, _ = planned(batches, tmp_path, knowledge=knowledge, budget=60)
    assert 0 < measure_unit(federations[0], settings) < 0.1


def test_returned_statistics_are_planned_behind_the_search_that_all_are_compared_with(folder, tmp_path, monkeypatch):
    tape = tape_federation(folder / "norm", model=NORMED, batch_size=4, rounds=1, local=TRAINED).tape
    *_, found = planned(tape, tmp_path, monkeypatch, budget=1e6)
    names = [one.attack.partition(":")[0] for one in found]
    plain = names.index("inverting-gradients")
    assert names[plain : plain + 2] == ["inverting-gradients", "statistics-matching"]
    assert found[plain + 1].expected_seconds > 300 * UNIT
    assert "statistics-only" in names[plain:]


def test_precode_before_the_head_of_a_transformer_leaks_and_the_sentence_says_why(guarded, tmp_path):
    record = audit_tape(guarded, out=tmp_path, attacks=["patch-embedding", "inverting-gradients:iterations=10"])
    (verdict,) = record.verdicts
    assert verdict.verdict == "leaks"
    assert "PRECODE (latent=6) does not stop the leak" in verdict.sentence
    assert "2 of 2 images were reconstructed by patch embedding, which ignores it" in verdict.sentence
    assert re.search(
        r"determines the image exactly \(relative residual \de-\d+ at most\), and PRECODE", verdict.sentence
    )
    assert record.flags == [], "a search that finds nothing is no weak evidence where a formula finds everything"
    rows = [row for row in record.results if row.attack == "patch-embedding"]
    assert all(confirms(row) and row.psnr > 60 for row in rows)


def test_a_federation_may_get_some_of_the_attacks_alone(guarded, batches, tmp_path):
    some = TapeSource(tape=guarded, attacks=("patch-embedding",))
    record = audit_tapes([some, TapeSource(tape=batches)], out=tmp_path, attacks=["patch-embedding", "activation-span"])
    tried = {(planned.federation, planned.attack): planned.status for planned in record.plan}
    assert tried == {
        ("f1", "patch-embedding"): "run",
        ("f2", "patch-embedding"): "not_applicable",
        ("f2", "activation-span"): "run",
    }
    assert [verdict.verdict for verdict in record.verdicts] == ["leaks", "leaks"]


def test_what_formulas_take_is_counted_where_the_rank_is_too_large(guarded, tmp_path, monkeypatch):
    monkeypatch.setattr(leakage_summary, "MOST_WORK", 0.0)
    record = audit_tape(guarded, out=tmp_path, attacks=["patch-embedding"], leakage=True)
    (found,) = record.leakage
    assert (found.jacobian_rank, found.positions.exact, found.positions.patches) == (None, True, 16)
    assert [(span.tokens, span.each, span.most) for span in found.spans] == [(True, 16, 39)]
    (told,) = determined(record, [SimpleNamespace(title="ViT", federation=record.federations[0])])
    assert told.headline.startswith("Not computed: too large")
    assert [sentence.partition(":")[0] for sentence in told.formulas] == [
        "One image is exactly determined, however large",
        "The tokens of 2 images of one batch are exactly determined",
    ]


def test_without_formulas_the_same_federation_is_doubted(guarded, tmp_path):
    record = audit_tape(guarded, out=tmp_path, attacks=["inverting-gradients:iterations=10"])
    assert record.verdicts[0].verdict == "not shown to leak"
    assert {"model-is-random", "single-start"} <= {flag.name for flag in record.flags}


def test_batches_are_reconstructed_whole_where_nobody_knows_how_many_images_there_are(folder, tmp_path):
    """Neither the tape nor the truth: the update's rank tells it, and the sentence counts what it confirms."""
    tape = tape_federation(
        folder / "untold", model=SMOOTH, batch_size=8, rounds=1, clients=1, evaluation=False, told=False
    ).tape
    record = audit_tape(tape, out=tmp_path, truth=False, attacks=["activation-span"])
    assert [row.outcome for row in record.results] == ["converged"] * 8
    assert "The update itself confirms 8 of 8 images: activation span found them" in record.verdicts[0].sentence
    known = audit_tape(folder / "mlp" / "tape", out=tmp_path / "known", attacks=["activation-span"], victims=1)
    assert "8 of 8 images were reconstructed by activation span" in known.verdicts[0].sentence
    assert "two layers with a smooth activation between them determine each image" in known.verdicts[0].sentence
