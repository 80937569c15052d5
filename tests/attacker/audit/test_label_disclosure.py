"""Labels that updates disclose, beside what class frequencies alone let one guess: read, compared, judged."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from attacker.audit.federations.federation import open_federations
from attacker.audit.inputs.tape_source import TapeSource
from attacker.audit.record.labels import LabelDisclosure, LabelReading
from attacker.audit.scoring.label_disclosure import _disclosure, _Read, label_disclosure
from attacker.audit.settings import AuditSettings
from attacker.audit.threat_model import LABELS, Knowledge
from attacker.audit.verdict.verdict import verdicts
from attacker.labels.prior import chance_of_counts, likeliest_counts
from attacker.optim.deadline import within
from attacker.report.page import render_page
from tests.attacker.audits import audit_tape
from tests.attacker.records import PLAIN, federation, summary, told
from tests.attacker.taped_federation import tape_federation

SETTINGS = AuditSettings(attacks=("first-layer",), victims=4)


def disclosed(taped, tmp_path, settings=SETTINGS, **source):
    own, *_ = open_federations([TapeSource(tape=taped.tape, **source)], settings, tmp_path / "controls")
    return own, label_disclosure(own, settings)


def test_labels_of_batches_are_read_and_compared(tmp_path):
    taped = tape_federation(tmp_path, batch_size=4)
    own, found = disclosed(taped, tmp_path)
    assert (found.read, found.compared, found.exact, found.images, found.right) == (4, 4, 4, 16, 16)
    for reading in found.updates:
        truth = taped.used[reading.node, reading.round][1].tolist()
        assert reading.counts == [Counter(truth)[label] for label in range(10)]
        assert reading.method == "counts"
        assert reading.exact
    assert found.interval == (pytest.approx(0.025 ** (1 / 4)), 1.0)
    assert found.p_value is not None
    assert found.p_value < 1e-6
    assert found.known > 1000


def test_the_guess_is_counted_from_the_data_set(tmp_path):
    taped = tape_federation(tmp_path, batch_size=4)
    own, found = disclosed(taped, tmp_path)
    counts = own.subject.truth.label_counts
    for reading in found.updates:
        others = [counts[label] - reading.counts[label] + 1 for label in range(10)]  # it read them right
        shares = [count / sum(others) for count in others]
        likeliest = likeliest_counts(shares, 4)
        assert reading.chance == pytest.approx(chance_of_counts(likeliest, shares))
        assert reading.guess_right == sum(map(min, likeliest, reading.counts))


def test_no_image_need_be_attacked(tmp_path):
    """Updates of more images than are compared one by one: labels are read all the same."""
    taped = tape_federation(tmp_path, batch_size=100, rounds=1)
    _, found = disclosed(taped, tmp_path)
    assert found.compared == 2
    assert found.images == 200
    assert found.right > found.guess_right


def test_what_was_granted_changes_nothing(tmp_path):
    taped = tape_federation(tmp_path, batch_size=2)
    granted = AuditSettings(attacks=("first-layer",), victims=4, knowledge=Knowledge.usual(know=[LABELS]))
    assert disclosed(taped, tmp_path)[1] == disclosed(taped, tmp_path, granted)[1]


def test_without_the_truth_labels_are_read_and_not_judged(tmp_path):
    taped = tape_federation(tmp_path, batch_size=2, evaluation=False)
    _, found = disclosed(taped, tmp_path)
    assert (found.read, found.compared, found.interval, found.p_value) == (4, 0, None, None)
    assert all(reading.right is None for reading in found.updates)


def test_who_is_not_told_how_many_images_there_are_reads_none(tmp_path):
    taped = tape_federation(tmp_path, batch_size=2)
    blind = AuditSettings(attacks=("first-layer",), victims=4, knowledge=Knowledge.usual(withhold=["batch-size"]))
    _, found = disclosed(taped, tmp_path, blind)
    assert found.read == 0
    assert all("batch size" in reading.reason for reading in found.updates)


def test_noise_in_place_of_an_update_discloses_nothing(tmp_path):
    taped = tape_federation(tmp_path, batch_size=4, rounds=4, defence="noise:std=10", perturbed=True)
    settings = AuditSettings(attacks=("first-layer",), victims=8)
    _, found = disclosed(taped, tmp_path, settings)
    assert found.exact == 0
    assert found.p_value == 1
    assert found.p_ahead > 0.01


def test_no_time_no_reading(tmp_path):
    taped = tape_federation(tmp_path)
    with within(0.0):
        assert disclosed(taped, tmp_path)[1] is None


def test_the_same_images_in_every_round_are_one_trial(tmp_path):
    local = {"local_epochs": 1, "learning_rate": 0.01}
    taped = tape_federation(tmp_path, batch_size=900, local=local)
    _, found = disclosed(taped, tmp_path)
    assert len(found.updates) == 4
    assert found.independent == len({frozenset((one.node,)) for one in found.updates}) == 2
    assert sorted(one.same_as is None for one in found.updates) == [False, False, True, True]


def test_labels_that_every_update_has_are_no_disclosure(tmp_path):
    """Clients with one class only: who guesses the labels of another update has them as well."""
    own, _ = disclosed(tape_federation(tmp_path), tmp_path)
    seen = own.observations()
    one = [0] * 7 + [1] + [0] * 2
    read = [
        _Read(observation=each, counts=one, said="idlg", truth=one, prints=frozenset([bytes([place])]))
        for place, each in enumerate(seen)
    ]
    found = _disclosure(own, read)
    assert (found.exact, found.p_value, found.guess) == (4, 1.0, 1.0)


def reading(**changes):
    content = {
        "round": 1, "node": "1", "images": 8, "method": "counts", "counts": [6, 2], "right": 8, "guess_right": 7,
        "chance": 0.31,
    }  # fmt: skip
    return LabelReading.model_validate(content | changes)


NONE = reading(counts=[], reason="no bias", right=None)


def disclosure(**changes):
    content = {
        "federation": "f1", "updates": [reading()], "known": 4000, "read": 4, "compared": 4, "exact": 4,
        "independent": 4, "interval": (0.4, 1.0), "guess": 0.31, "p_value": 0.009, "images": 32, "right": 32,
        "guess_right": 27, "p_ahead": 0.06,
    }  # fmt: skip
    return LabelDisclosure.model_validate(content | changes)


def judged(found, *, successes=0):
    own = told([federation("f1")], [summary("f1", PLAIN, successes, 64)], label_disclosures=[found])
    (entry,) = verdicts(own)
    return entry, next(line for line in entry.lines if line.subject == "labels")


def test_labels_that_leak_stand_in_the_first_sentence_where_no_image_was_reconstructed():
    entry, line = judged(disclosure())
    assert line.state == "leaks"
    assert "the labels of all 32 images are disclosed, none of the images. As to images: not shown" in entry.sentence
    assert entry.verdict == "not shown to leak", "the verdict is about images, and gates go by it"
    assert (line.seen, line.cases, line.guess, line.p_value) == (4, 4, 0.31, 0.009)
    assert "31 % of updates (p = 0.009)" in line.sentence
    entry, line = judged(disclosure(), successes=60)
    assert line.state == "leaks"
    assert "label" not in entry.sentence


@pytest.mark.parametrize(
    ("changes", "state", "words"),
    [
        ({"p_value": 0.1}, "not shown", "4 independent updates are too few"),
        ({"exact": 0, "right": 20, "p_value": 1.0}, "not shown", "no better than that guess"),
        ({"exact": 1, "right": 30, "p_value": 0.5, "p_ahead": 0.004}, "leaks in part", "ahead of that guess"),
        ({"exact": 0, "right": 20, "p_value": 1.0, "p_ahead": 0.004}, "not shown", "no better"),
        ({"compared": 0, "interval": None, "p_value": None}, "not known", "true ones are not known"),
        ({"compared": 0, "read": 0, "updates": [NONE]}, "not shown", "No bias."),
    ],
)  # fmt: skip
def test_the_line_says_how_sure_it_is(changes, state, words):
    _, line = judged(disclosure(**changes))
    assert line.state == state
    assert words in f"{line.sentence} {line.reason}"


def test_an_audit_has_them_in_its_record(tmp_path):
    taped = tape_federation(tmp_path, batch_size=2)
    record = audit_tape(taped.tape, out=tmp_path / "audit", victims=2, attacks=("first-layer",))
    (found,) = record.label_disclosures
    assert (found.federation, found.exact, found.compared) == ("f1", 2, 2)
    written = json.loads((tmp_path / "audit" / "audit.json").read_bytes())
    assert written["label_disclosures"][0]["exact"] == 2
    (entry,) = record.verdicts
    assert [line.subject for line in entry.lines] == ["images", "labels", "guarantees"]
    assert [one.channel for one in record.channels] == ["update"]
    page = render_page(record, tmp_path / "audit")
    assert '<dl class="lines">' in page
    assert "Channels of a reply" in page
