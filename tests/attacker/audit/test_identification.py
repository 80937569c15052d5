"""Audits say whose image was reconstructed, among how many, and what keeps them from saying it."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from attacker.audit.inputs.tape_source import TapeSource
from attacker.audit.record.csv_file import results_text
from attacker.audit.record.identification import rank_summaries, with_identified
from attacker.audit.record.json_file import read_record
from attacker.audit.record.schema import VictimImage
from attacker.audit.scoring import identification
from attacker.audit.scoring.identification import LineUp, Pools, what_lacks
from attacker.audit.settings import AuditSettings
from attacker.audit.truth.base import HeldTruth, Truth
from attacker.cli.main import app
from attacker.metrics.feature_distance import feature_network
from attacker.optim.deadline import within
from attacker.report.page import render_page
from tests.attacker.audits import audit_tapes
from tests.attacker.records import rows
from tests.attacker.taped_federation import tape_federation


@pytest.fixture(scope="module")
def taped(tmp_path_factory):
    """Four updates of one digit each."""
    return tape_federation(tmp_path_factory.mktemp("taped"), clients=4, rounds=1)


@pytest.fixture
def by_pixels(monkeypatch):
    """As where the extra is not installed."""
    monkeypatch.setattr(identification, "feature_network", lambda: None)


def audited(taped, out, *, attacks=("first-layer",), truth=True, **settings):
    return audit_tapes([TapeSource(tape=taped.tape, truth=truth)], out=out, attacks=attacks, victims=4, **settings)


class Held(HeldTruth):
    """All images of the evaluation, in one place."""

    def __init__(self, images, labels):
        super().__init__("memory", {})
        self.all = Truth(images=images, labels=labels)

    def knows(self, entry):
        return True

    def truth(self, entry):
        return self.all

    def classes(self, entry):
        return None

    def held(self):
        yield self.all


class Repeated(Held):
    """As often as they are there, as in a data set."""

    def candidates(self, labels, most, seed):
        return {label: identification.Candidates.of(self.all.images[:most], self.all.labels[:most]) for label in labels}


@pytest.fixture
def pictures(generator):
    return torch.rand(200, 1, 4, 4, generator=generator).repeat_interleave(4, 2).repeat_interleave(4, 3)


def line_up(images, labels, *, behind=1, candidates=1000, source=Held, seed=0):
    known = source(images, labels)
    pools = Pools(known, set(labels[:behind].tolist()), candidates, seed)
    return LineUp(pools, Truth(images=images[:behind], labels=labels[:behind]))


def test_an_exact_reconstruction_is_first_among_the_images_of_its_class(taped, tmp_path):
    record = audited(taped, tmp_path)
    for row in record.results:
        assert (row.rank, row.rank_tied) == (1, 0)
        assert 100 < row.candidates == row.candidates_of_class < 200  # all training digits of one class
        assert row.rank_chance == pytest.approx(1 / row.candidates)
        assert row.identified is True  # chance makes one image of 150 first, and not four of four
    (summary,) = record.summaries
    ranks = summary.identification[0]
    assert (ranks.measure, ranks.first, ranks.images, ranks.median_rank, ranks.identified) == ("pixels", 4, 4, 1, 4)
    assert ranks.first_interval == pytest.approx((0.398, 1), abs=0.001)
    assert ranks.chance < 1e-6
    (federation,) = record.federations
    assert "identification-few" in federation.identification_codes
    assert ("identification-no-features" in federation.identification_codes) == (feature_network() is None)
    assert len(summary.identification) == (1 if feature_network() is None else 2)


def test_the_number_of_candidates_and_the_seed_change_what_is_compared(taped, tmp_path, by_pixels):
    noise = ("inverting-gradients:iterations=1",)
    few = audited(taped, tmp_path / "few", candidates=30, attacks=noise)
    assert {row.candidates for row in few.results} == {31}
    assert few.settings["candidates"] == 30
    again = audited(taped, tmp_path / "again", candidates=30, attacks=noise)
    ranks = [row.rank for row in few.results]
    assert [row.rank for row in again.results] == ranks
    more = audited(taped, tmp_path / "more", attacks=noise)
    assert [row.rank for row in more.results] != ranks
    none = audited(taped, tmp_path / "none", candidates=0, attacks=noise)
    assert {row.candidates for row in none.results} == {None}
    assert none.federations[0].identification_codes == ["identification-left-out"]
    assert none.summaries[0].identification == []
    assert [row.ssim for row in none.results] == [row.ssim for row in more.results]
    with pytest.raises(ValueError, match="0 or more candidates"):
        AuditSettings(attacks=noise, candidates=-1)


def test_other_seeds_draw_other_candidates(pictures, by_pixels):
    labels = torch.zeros(200, dtype=torch.int64)
    noise = torch.rand(1, 1, 16, 16)
    ranks = {line_up(pictures, labels, candidates=50, seed=seed).scores(noise)[0]["rank"] for seed in range(8)}
    assert len(ranks) > 1


class Counted:
    """Features that cost nothing, and how many images were given for them."""

    def __init__(self):
        self.images = []

    def features(self, images):
        self.images.append(len(images))
        return images.flatten(1)


def test_federations_of_the_same_images_compute_their_features_once(pictures, monkeypatch):
    network = Counted()
    monkeypatch.setattr(identification, "feature_network", lambda: network)
    labels = torch.arange(200) % 2
    update = Truth(images=pictures[:1], labels=labels[:1])

    def ranks(classes, pools):
        pools.append(Pools(Held(pictures, classes), {0}, 60, 0, beside=[*pools]))
        network.images.clear()
        return LineUp(pools[-1], update).scores(0.5 * pictures[1:2] + 0.5 * pictures[:1]), max(network.images)

    known = []
    first, others = ranks(labels, known)
    assert others > 60
    assert ranks(labels, known) == (first, 1), "only the truth and the reconstruction are left to look at"
    assert ranks(1 - labels, [])[1] > 60, "nothing beside it: drawn and looked at"
    assert ranks(torch.zeros_like(labels), known)[1] > 60, "other images of the class: looked at anew"


def test_without_a_truth_it_says_so(taped, tmp_path, by_pixels):
    record = audited(taped, tmp_path, truth=False)
    assert record.federations[0].identification_codes == ["identification-needs-truth"]
    assert record.summaries[0].identification == []
    page = render_page(record, tmp_path)
    assert "Whose images they are cannot be said" in page
    assert '<th scope="col" class="number">Whose<br>image</th>' not in page


def test_a_truth_of_no_other_image_says_so(taped, tmp_path, by_pixels):
    (node, _), (images, labels) = next(iter(taped.used.items()))
    path = tmp_path / "truth.npz"
    np.savez(path, images=images.numpy(), labels=labels.numpy(), node=np.array([node]))
    record = audited(taped, tmp_path / "audit", truth=f"npz:{path}")
    assert "identification-needs-others" in record.federations[0].identification_codes
    assert {row.candidates for row in record.results} == {None}


def test_the_page_and_the_table_say_it_and_redaction_hides_no_number_and_no_other_image(taped, tmp_path, by_pixels):
    record = audited(taped, tmp_path)
    shown, blurred = render_page(record, tmp_path), render_page(record, tmp_path, redact=True)
    ranked = f"place 1 of {record.results[0].candidates}"
    for page in (shown, blurred):
        assert '<th scope="col" class="number">Whose<br>image</th>' in page
        assert "4 of 4 first of" in page
        assert "(40 to 100 %), median place 1, by chance less than 0.001." in page
        assert ranked in page
    known = {picture for row in record.results for picture in [row.reconstruction]}
    known |= {picture for victim in record.victims for picture in (victim.truth, victim.baseline, victim.guess)}
    assert {f"images/{path.name}" for path in (tmp_path / "images").iterdir()} <= known
    table = list(csv.DictReader(results_text(record).splitlines()))
    assert {line["rank"] for line in table} == {"1.0"}
    assert {line["identified"] for line in table} == {"True"}
    stored = json.loads((tmp_path / "audit.json").read_text())
    assert stored["summaries"][0]["identification"][0]["first"] == 4


def identified(updates, same=None):
    """What an attack identified, from the scores of each update; ``same`` has images that are another's copy."""
    flat = [{**scores, "node": str(node)} for node, update in enumerate(updates) for scores in update]
    results = [
        row.model_copy(update=fields) for row, fields in zip(rows("f1", "first-layer", len(flat)), flat, strict=True)
    ]
    copies = [victim(row).model_copy(update={"same_as": (same or {}).get(row.victim_id)}) for row in results]
    return [row.identified for row in with_identified(results, copies)]


def victim(row):
    return VictimImage(
        id=row.victim_id, federation=row.federation, round=row.round, node=row.node, image=row.image, label=0,
        label_name=None, truth=None, baseline=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("first", "of", "candidates", "expected"),
    [(1, 64, 1001, 0), (2, 64, 1001, 0), (3, 64, 1001, 3), (13, 16, 1000, 13), (4, 16, 128, 4), (32, 64, 20, 0),
     (16, 16, 19, 0)],
)  # fmt: skip
def test_what_an_attack_identifies_goes_by_all_of_its_images(first, of, candidates, expected):
    scores = [
        {"candidates": candidates, "candidates_of_class": candidates, "rank": 1 if place < first else 9, "rank_tied": 0}
        for place in range(of)
    ]
    assert sum(identified([[one] for one in scores])) == expected


def test_an_image_alone_is_identified_from_a_thousand_others_on(pictures, by_pixels):
    many = torch.cat([pictures, torch.rand(900, 1, 16, 16, generator=torch.Generator().manual_seed(3))])
    labels = torch.zeros(len(many), dtype=torch.int64)
    noisy = many[:1] + 0.2 * torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(4))
    (found,) = line_up(many, labels).scores(noisy.clamp(0, 1))
    assert (found["candidates"], found["rank"], identified([[found]])) == (1001, 1, [True])
    (fewer,) = line_up(many, labels, candidates=999).scores(noisy.clamp(0, 1))
    assert (fewer["candidates"], fewer["rank"], identified([[fewer]])) == (1000, 1, [False])
    assert identified([[fewer]] * 2) == [True] * 2, "two updates whose images are first are no chance"


def test_one_image_of_a_batch_is_not_identified_and_several_are(pictures):
    labels = torch.zeros(200, dtype=torch.int64)
    behind = line_up(pictures, labels, behind=4)
    made = torch.full((4, 1, 16, 16), 0.5)
    made[0] = pictures[0]
    alone = behind.scores(made)
    assert [found["rank"] for found in alone] == [1, 99, 99, 99]
    assert identified([alone]) == [False] * 4
    assert alone[0]["rank_chance"] == pytest.approx(4 / 197)  # four images could have been the nearest
    all_of_them = behind.scores(pictures[:4])
    assert identified([all_of_them]) == [True] * 4
    made[2:] = torch.nan
    found = behind.scores(made)
    assert [("rank" in one, one["candidates"]) for one in found] == [(True, 197)] * 2 + [(False, 197)] * 2
    assert all("rank" not in one for one in behind.scores(None))


def test_a_small_class_is_told_from_all_and_judged_among_its_own(pictures):
    labels = torch.cat([torch.zeros(6, dtype=torch.int64), torch.ones(194, dtype=torch.int64)])
    (found,) = line_up(pictures, labels).scores(pictures[:1])
    assert (found["candidates"], found["candidates_of_class"], found["rank"]) == (200, 6, 1)
    assert found["rank_chance"] == pytest.approx(1 / 6)


def test_images_that_are_all_equal_are_told_from_none(pictures):
    same = pictures[:1].expand(60, -1, -1, -1).contiguous()
    labels = torch.zeros(60, dtype=torch.int64)
    (found,) = line_up(same, labels, source=Repeated).scores(same[:1])
    assert (found["candidates"], found["rank"], found["rank_tied"]) == (60, 30.5, 59)
    assert (found["rank_chance"], identified([[found]])) == (1, [False])
    held = line_up(same, labels)  # where an image counts once, there is no other
    assert held.scores(same[:1]) == [{}]
    assert what_lacks([held], 1000, late=False).codes[0] == "identification-needs-others"
    twice = torch.cat([pictures[:100], pictures[:1]])
    (found,) = line_up(twice, torch.zeros(101, dtype=torch.int64), source=Repeated).scores(pictures[:1])
    assert (found["rank"], found["rank_tied"], found["candidates"]) == (1.5, 1, 101)  # a copy is no miss


def test_images_of_the_update_are_no_candidates_of_each_other(pictures):
    labels = torch.zeros(200, dtype=torch.int64)
    found = line_up(pictures, labels, behind=3).scores(pictures[[1, 0, 2]])
    assert [one["candidates"] for one in found] == [198] * 3
    assert found[2]["rank"] == 1 < found[0]["rank"]


def test_an_image_that_is_twice_in_an_update_is_one(pictures):
    twice = torch.cat([pictures[:1], pictures])
    found = line_up(twice, torch.zeros(201, dtype=torch.int64), behind=2).scores(twice[:2])
    assert [(one["rank"], one["candidates"]) for one in found] == [(1, 200)] * 2
    assert identified([found], same={"f1-u1-i0": "f1-u0-i0"}) == [False] * 2


def test_what_there_is_no_time_for_is_left_out_and_said(pictures):
    labels = torch.zeros(200, dtype=torch.int64)
    behind = line_up(pictures, labels)
    with within(0):
        assert behind.scores(pictures[:1]) == [{}]
    assert behind._pools.late
    assert what_lacks([behind], 1000, late=True).codes[0] == "identification-needs-time"


def test_summaries_count_places_by_updates():
    known = {"candidates": 1001, "candidates_of_class": 1001, "rank": [1, 1.5, 5, 1], "rank_tied": [0, 1, 0, 0]}
    known |= {"identified": [True, False, False, True], "node": ["1", "2", "3", "4"]}
    different = rows("f1", "first-layer", **known)
    (ranks,) = rank_summaries(different, {})
    assert (ranks.first, ranks.among_five, ranks.median_rank, ranks.identified) == (2.5, 4, 1.25, 2)
    assert ranks.expected == pytest.approx(4 / 1001)
    (together,) = rank_summaries([row.model_copy(update={"node": "1"}) for row in different], {})
    assert together.first_interval[0] < ranks.first_interval[0] < 2.5 / 4 < ranks.first_interval[1]
    assert together.chance > ranks.chance
    (again,) = rank_summaries(different, {"f1-u3-i0": "f1-u0-i0"})  # the last image is the first one's
    assert again.chance == pytest.approx(3 / 1001, rel=0.01)
    assert again.chance > ranks.chance
    unknown = [row.model_copy(update={"rank": None, "rank_tied": None}) for row in different]
    (nothing,) = rank_summaries(unknown, {})
    assert (nothing.first, nothing.median_rank, nothing.images, nothing.chance) == (0, None, 4, 1)
    assert rank_summaries(rows("f1", "first-layer"), {}) == []


def test_the_command_line_takes_the_number_of_candidates(taped, tmp_path, by_pixels):
    asked = ["audit", str(taped.tape), "--out", str(tmp_path / "out"), "--attacks", "first-layer", "--no-leakage"]
    done = CliRunner().invoke(app, [*asked, "--victims", "1", "--no-control", "--candidates", "25"])
    assert done.exit_code == 0, done.output
    record = read_record(tmp_path / "out")
    assert [row.candidates for row in record.results] == [26]
    assert CliRunner().invoke(app, [*asked, "--candidates", "-1"]).exit_code == 2
