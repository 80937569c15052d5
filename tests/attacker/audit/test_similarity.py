from __future__ import annotations

import json
import math
import stat
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from attacker.attacks.base import Attack, Outcome, Reconstruction
from attacker.attacks.label_trial import without_labels
from attacker.attacks.registry import ATTACKS, AttackEntry
from attacker.audit.audit import attack_seed
from attacker.audit.execution.files import Pictures
from attacker.audit.federations.victim_selection import ordered_victims
from attacker.audit.inputs.tape_source import TapeSource, open_subject, summarise_federation
from attacker.audit.scoring.similarity import Placebos, UpdateEvaluation, score_images, summarise
from attacker.audit.truth.base import Truth
from attacker.audit.truth.best_guess import Guesses
from attacker.reasons import because
from fl_precode.models.input_spec import InputSpec
from fl_precode.tape import TapeHeader
from tests.attacker.audits import audit_tape, audit_tapes
from tests.attacker.taped_federation import tape_federation

QUICK = ("first-layer", "inverting-gradients:iterations=3")


class Grey:
    """Somebody who knows no image, and guesses grey."""

    mean_image = torch.full((1, 8, 8), 0.5)

    def of_class(self, label):
        return torch.zeros(0, 1, 8, 8)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return tape_federation(tmp_path_factory.mktemp("single"))


@pytest.fixture(scope="module")
def batched(tmp_path_factory):
    return tape_federation(tmp_path_factory.mktemp("batched"), batch_size=3, rounds=1)


@pytest.fixture
def evaluation(batched, tmp_path):
    """The evaluation of one update of three images, and its truth."""
    subject = open_subject(TapeSource(tape=batched.tape))
    (node, _), (images, labels) = next(iter(batched.used.items()))
    return (
        UpdateEvaluation(
            federation=summarise_federation(subject, "f1", "recovered", []),
            number=1,
            observation=subject.tape.observations(nodes=[node])[0],
            inputs=subject.victim.inputs,
            truth=Truth(images=images, labels=labels),
            guesses=Guesses(Grey()),
            class_names=tuple("abcdefghij"),
            pictures=Pictures(tmp_path),
        ),
        subject.victim.inputs.normalise(images),
        labels,
    )


SEARCH = "inverting-gradients"


def attacked(inputs, labels=None, **kwargs) -> Reconstruction:
    return Reconstruction(inputs=inputs, labels=labels, outcome=Outcome.ITERATION_LIMIT, seconds=3.0, **kwargs)


def test_batches_are_matched_before_they_are_scored(evaluation):
    update, inputs, labels = evaluation
    rows = update.results(SEARCH, attacked(inputs[[2, 0, 1]], labels[[2, 0, 1]]), "a1")
    assert [row.image for row in rows] == [0, 1, 2]
    assert [row.ssim for row in rows] == pytest.approx([1, 1, 1], abs=1e-5)
    assert all(row.label_accuracy == 1 and row.seconds == 1.0 for row in rows)
    assert all(row.baseline_ssim < 0.3 for row in rows)


def test_a_diverged_image_is_like_its_truth_in_nothing_and_does_not_spoil_the_others(evaluation):
    update, inputs, _ = evaluation
    broken = inputs[[1, 0, 2]].clone()
    broken[0] = torch.nan
    rows = update.results(SEARCH, attacked(broken, matching_loss=math.nan), "a1")
    assert [row.ssim for row in rows] == pytest.approx([1, 0, 1], abs=1e-5)
    assert rows[1].psnr is rows[1].mse is rows[1].matching_loss is None
    summary = summarise("f1", SEARCH, rows)
    assert (summary.images, summary.successes) == (3, 2)
    assert summary.mean_ssim == pytest.approx(2 / 3, abs=1e-5)
    nothing = Reconstruction(inputs=None, labels=None, outcome=Outcome.DIVERGED, reason="it is not finite")
    rows = update.results("first-layer", nothing, "a2")
    assert [row.ssim for row in rows] == [0, 0, 0]
    assert summarise("f1", "first-layer", rows).median_ssim == 0


def test_a_row_is_compared_with_what_the_same_attack_makes_of_other_updates(evaluation):
    update, inputs, _ = evaluation
    images = update._inputs.denormalise(inputs)
    alone = update.results(SEARCH, attacked(inputs), "a1")
    assert {row.guess for row in alone} <= {"mean image", "plain image"}
    near = (images + 0.1 * torch.rand(images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    for made, name in (
        (Placebos(others=[near.flip(0)]), "the same attack on another update"),
        (Placebos(shuffled=[near]), "the same attack on the shuffled update"),
    ):
        rows = update.results(SEARCH, attacked(inputs), "a1", made)
        assert {row.guess for row in rows} == {name}
        assert all(row.guess_ssim > other.guess_ssim for row, other in zip(rows, alone, strict=True))
        assert summarise("f1", SEARCH, rows).successes == 3  # an exact one counts all the same
        again = update.results(SEARCH, attacked(update._inputs.normalise(near)), "a1", made)
        assert summarise("f1", SEARCH, again).successes == 0


def test_an_update_whose_labels_were_not_found_stays_in_the_denominator(evaluation):
    update, inputs, _ = evaluation
    results = attacked(inputs), without_labels("none"), Reconstruction.not_applicable("it is made for one image")
    rows = [row for number, one in enumerate(results) for row in update.results(SEARCH, one, f"a{number}")]
    summary = summarise("f1", SEARCH, rows)
    assert (summary.images, summary.successes, summary.not_applicable) == (6, 3, 3)


def test_images_of_another_number_are_a_named_failure(evaluation):
    update, inputs, _ = evaluation
    rows = update.results(SEARCH, attacked(torch.cat([inputs, inputs[:1]])), "a1")
    assert {row.outcome for row in rows} == {"failed"}
    assert rows[0].reason == because("images-do-not-fit", got=4, expected=3)
    assert rows[0].reconstruction is None


def test_some_images_of_an_update_count_and_the_others_do_not(evaluation):
    """An attack that is not told how many images there are, or finds a part of them, has not failed."""
    update, inputs, _ = evaluation
    gaps = torch.cat([inputs[1:2], torch.full_like(inputs[:2], torch.nan)])
    for found, codes in ((inputs[1:2], ["fewer-images"]), (gaps, [])):
        rows = update.results(SEARCH, attacked(found), "a1")
        assert [row.outcome for row in rows] == ["iteration_limit"] * 3
        assert [row.psnr is not None for row in rows] == [False, True, False]
        assert [row.reason_codes for row in rows] == [codes] * 3
        summary = summarise("f1", SEARCH, rows)
        assert (summary.images, summary.successes, summary.failed) == (3, 1, 0)


def test_granted_labels_have_no_accuracy_and_wrong_ones_a_low_one(evaluation):
    update, inputs, labels = evaluation
    wrong = (labels + 1) % 10
    expected = sum((Counter(wrong.tolist()) & Counter(labels.tolist())).values()) / 3
    assert update.results(SEARCH, attacked(inputs, wrong), "a1")[0].label_accuracy == pytest.approx(expected)
    (unused, *_) = update.results(SEARCH, attacked(inputs, wrong), "a1", labels_granted=True)
    assert unused.label_accuracy == pytest.approx(expected)
    (used, *_) = update.results(SEARCH, attacked(inputs, labels), "a1", labels_granted=True)
    assert used.label_accuracy is None


def test_what_an_attack_that_failed_did_until_then_stays_in_its_row(evaluation):
    update, _, _ = evaluation
    failed = Reconstruction(inputs=None, labels=None, outcome=Outcome.FAILED, reason="boom", seconds=3.0, iterations=7)
    (row, *_) = update.results(SEARCH, failed, "a1")
    assert (row.outcome, row.reason, row.ssim, row.seconds, row.iterations) == ("failed", "boom", None, 1.0, 7)


def test_identical_images_have_a_null_psnr_beside_mse_zero():
    images = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    (score,) = score_images(images, images)
    assert (score.psnr, score.mse) == (None, 0.0)
    assert score.ssim == pytest.approx(1)


def test_images_too_small_for_ssim_have_the_other_figures_and_no_success(evaluation):
    (score,) = score_images(torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.1))
    assert score.ssim is None
    assert score.psnr == pytest.approx(20)


def test_an_audit_gives_each_attack_its_rows_and_the_truth_its_pictures(single, tmp_path):
    record = audit_tape(single.tape, out=tmp_path / "audit", attacks=QUICK, victims=3, seed=1)
    assert [(row.attack, row.outcome) for row in record.results[:2]] == [
        ("first-layer", "converged"),
        ("inverting-gradients:iterations=3", "iteration_limit"),
    ]
    exact = [row for row in record.results if row.attack == "first-layer"]
    assert len(exact) == 3
    assert all(row.ssim > 0.999 for row in exact)
    assert record.summaries[0].successes == 3
    assert record.federations[0].accuracy[0].accuracy == 0.5
    for victim in record.victims:
        images, labels = single.used[victim.node, victim.round]
        with Image.open(tmp_path / "audit" / victim.truth) as picture:
            pixels = np.asarray(picture)
        assert np.array_equal(pixels, (images[0, 0] * 255).round().byte().numpy())
        assert victim.label == int(labels[0])
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "audit").rglob("*") if path.is_file()}
    assert modes == {0o600}


def test_the_seed_decides_the_victims_and_the_attack(single, tmp_path):
    def figures(seed: int) -> list[tuple[object, ...]]:
        record = audit_tape(single.tape, out=tmp_path, attacks=QUICK, victims=2, seed=seed)
        return [(row.round, row.node, row.ssim) for row in record.results]

    assert figures(1) == figures(1)
    assert figures(1) != figures(2)
    assert attack_seed(1, "a") != attack_seed(1, "b")


def test_labels_can_be_granted(single, batched, tmp_path):
    def outcome(labels) -> str:
        attacks = ["inverting-gradients:iterations=2"]
        return audit_tape(batched.tape, out=tmp_path, attacks=attacks, victims=1, labels=labels).results[0].outcome

    assert outcome("granted") == "iteration_limit"
    assert outcome("recovered") == "iteration_limit"


def test_without_evaluation_file_the_audit_goes_on_and_says_so(tmp_path):
    taped = tape_federation(tmp_path, evaluation=False, rounds=1)
    record = audit_tape(taped.tape, out=tmp_path / "audit", attacks=QUICK, victims=2)
    assert not record.federations[0].truth_known
    assert record.federations[0].truth_codes == ["truth-not-there"]
    assert all(row.ssim is None and row.reconstruction is not None for row in record.results)
    assert record.summaries[0].successes is None
    assert {victim.truth for victim in record.victims} == {None}
    with pytest.raises(ValueError, match="labels cannot be granted"):
        audit_tape(taped.tape, out=tmp_path / "audit", attacks=QUICK, labels="granted")


def test_truth_can_be_left_out(single, tmp_path):
    record = audit_tapes([TapeSource(tape=single.tape, truth=False)], out=tmp_path, attacks=["first-layer"], victims=1)
    assert record.results[0].ssim is None
    assert record.federations[0].truth_note == because("truth-left-out")


@dataclass(frozen=True, kw_only=True)
class Raising(Attack):
    """An attack with a defect."""

    @property
    def name(self) -> str:
        return "raising"

    def refuses(self, victim, observation):
        return None

    def run(self, victim, observations, labels, generators, progress):
        raise RuntimeError("no memory left")


def test_an_attack_that_raises_is_named_and_the_others_go_on(single, tmp_path):
    entry = AttackEntry(description="always raises", source="none", build=lambda spec: Raising())
    with ATTACKS.instead({"raising": entry}):
        record = audit_tape(single.tape, out=tmp_path, attacks=["raising", "first-layer"], victims=1)
    assert [row.outcome for row in record.results] == ["failed", "converged"]
    assert record.results[0].reason == because("attack-raised", kind="RuntimeError", error="no memory left")
    assert record.results[0].reason_codes == record.summaries[0].reason_codes == ["attack-raised"]
    assert (record.summaries[0].failed, record.summaries[0].successes) == (1, 0)


def test_a_damaged_update_is_passed_over_and_named(tmp_path):
    taped = tape_federation(tmp_path, rounds=1, clients=3)
    victim = next((taped.tape / "observations").iterdir())
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    record = audit_tape(taped.tape, out=tmp_path / "audit", attacks=["first-layer"], victims=3)
    assert len(record.victims) == 2
    assert any(victim.name in problem for problem in record.federations[0].tape_problems)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"rounds": [{"round": 1}]},
        {"rounds": 3},
        {"settings": {"model": "lenet"}},
        {"rounds": [{"round": 1, "accuracy": 7, "loss": 0, "usable": 1, "left_out": []}]},
    ],
)
def test_a_result_file_of_something_else_is_not_used_and_named(tmp_path, caplog, change):
    taped = tape_federation(tmp_path, rounds=1)
    path = tmp_path / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    record = audit_tape(taped.tape, out=tmp_path / "audit", attacks=["first-layer"], victims=1)
    assert record.federations[0].accuracy == []
    assert "result.json is not used" in caplog.text


def test_replies_that_the_server_left_out_are_in_the_record(tmp_path):
    taped = tape_federation(tmp_path, rounds=1)
    path = tmp_path / "result.json"
    content = json.loads(path.read_text())
    content["rounds"][0]["left_out"] = [{"node": 7, "reason": "loss is NaN"}]
    path.write_text(json.dumps(content | {"tape_lost": 2}))
    (found,) = audit_tape(taped.tape, out=tmp_path / "audit", attacks=["first-layer"], victims=1).federations
    assert [(one.round, one.node, one.reason) for one in found.left_out] == [(1, "7", "loss is NaN")]
    assert found.lost == 2


def test_a_header_without_model_asks_for_it(tmp_path):
    taped = tape_federation(tmp_path, header=TapeHeader(kind="gradient"), evaluation=False)
    with pytest.raises(ValueError, match=r"does not say the model \(--model .*\) and the images \(--input"):
        audit_tape(taped.tape, out=tmp_path / "audit", attacks=["first-layer"])
    given = InputSpec(channels=1, height=8, width=8, classes=10, mean=(0.0,), std=(1.0,))
    record = audit_tape(taped.tape, out=tmp_path / "audit", attacks=["first-layer"], model="mlp", inputs=given)
    assert record.results[0].outcome == "converged"
    assert record.federations[0].defence == "unknown"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"victims": 0}, "at least one tape and one victim"),
        ({"attacks": []}, "one or more different attacks"),
        ({"attacks": ["first-layer", "first-layer"]}, "one or more different attacks"),
        ({"attacks": ["first"]}, "there is no attack 'first'"),
    ],
)
def test_contradictory_audits_are_refused(single, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        audit_tape(single.tape, out=tmp_path, **({"attacks": ["first-layer"]} | change))


@dataclass(frozen=True)
class Place:
    round: int
    node: str


def test_victims_are_spread_over_rounds_and_nodes():
    places = [Place(r, n) for r in (1, 2, 3) for n in "abc"]
    for seed in range(20):
        first = ordered_victims(places, seed=seed, rank=str)[:3]
        assert {one.round for one in first} == {1, 2, 3}
        assert {one.node for one in first} == {"a", "b", "c"}
    assert len({str(ordered_victims(places, seed=seed, rank=str)) for seed in range(20)}) > 10


def test_equal_ranks_give_equal_choices_whatever_the_node_ids_are():
    def partitions(nodes: str) -> list[tuple[int, int]]:
        places = [Place(r, n) for r in (1, 2) for n in nodes]
        return [
            (p.round, nodes.index(p.node)) for p in ordered_victims(places, seed=4, rank=lambda n: str(nodes.index(n)))
        ]

    assert partitions("abcd") == partitions("wzqx")
