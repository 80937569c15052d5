"""What became better or worse: paired where the victims are the same, with intervals that cover what they should."""

from __future__ import annotations

import re

import numpy as np
import pytest
from typer.testing import CliRunner

from attacker.audit.record.schema import TapeIdentity, VictimImage
from attacker.audit.scoring.similarity import summarise
from attacker.audit.verdict.compare import ANY, compare
from attacker.audit.verdict.finish import finish_record, write_audit
from attacker.cli.main import app
from attacker.metrics.intervals import difference_interval, mcnemar, paired_interval
from attacker.report.compare_page import headline, render_comparison
from tests.attacker.records import ADAPTIVE, PLAIN, each, federation, record

TAPE = TapeIdentity(sha256="a" * 64, manifest_bytes=9)


def audit(back, images=20, *, defence="precode", tape=TAPE, attacks=(PLAIN,), control=True, **changes):
    """An audit in which the victims of these numbers were reconstructed by the first attack."""
    federations = [federation("f2", defence, tape_identity=tape, **changes)]
    results = []
    for place, attack in enumerate(attacks):
        ssim = [0.9 if number in back and place == 0 else 0.1 for number in range(images)]
        results += each("f2", attack, images, ssim=ssim)
    if control:
        federations.insert(0, federation("f1", control_of="f2"))
        results += each("f1", PLAIN, images, ssim=0.9)
    victims = [
        VictimImage(
            id=f"f2-u{n}-i0", federation="f2", round=n + 1, node="7", image=0, label=1, label_name="a", truth=None
        )
        for n in range(images)
    ]
    summaries = [summarise(one.id, attack, results) for one in federations for attack in attacks]
    return finish_record(record(federations, summaries, results=results, victims=victims))


def change(first, second, folders=None, attack=ANY):
    (found,) = compare(first, second, folders or ("/nowhere", "/nowhere"))
    return next(one for one in found.changes if one.attack == attack)


def folders(tmp_path):
    return (tmp_path / "a", tmp_path / "b")


def test_the_same_victims_are_compared_one_by_one(tmp_path):
    found = change(audit(range(12)), audit(range(2)), folders(tmp_path))
    assert found.paired
    assert (found.first, found.second) == ((12, 20), (2, 20))
    assert found.probability == pytest.approx(mcnemar(0, 10))
    assert found.interval == pytest.approx(paired_interval(2, 0, 10, 8))
    assert found.judgement == "better"
    assert found.difference == pytest.approx(-0.5)
    assert found.interval[0] < found.difference < found.interval[1] < 0


def test_other_victims_are_compared_as_two_samples(tmp_path):
    other = TapeIdentity(sha256="b" * 64, manifest_bytes=9)
    found = change(audit(range(12)), audit(range(2), tape=other), folders(tmp_path))
    assert not found.paired
    assert found.interval == pytest.approx(difference_interval((2, 12), (20, 20)))
    assert found.judgement == "better"
    assert not change(audit(range(12), tape=None), audit(range(2), tape=None), folders(tmp_path)).paired


@pytest.mark.parametrize(
    ("first", "second", "judgement"),
    [
        (range(2), range(12), "worse"),
        (range(5), range(5), "no difference shown"),
        (range(5), range(7), "no difference shown"),
        (range(10), range(10, 20), "no difference shown"),
        (range(0), range(6), "worse"),
        (range(0), range(5), "no difference shown"),  # 5 of 20: p = 0.06
    ],
)
def test_better_and_worse_are_more_than_chance(tmp_path, first, second, judgement):
    assert change(audit(first), audit(second), folders(tmp_path)).judgement == judgement


def test_images_of_one_update_are_one_change(tmp_path):
    def batches(back):
        made = audit(back)
        place = {one.id: number for number, one in enumerate(made.victims)}
        update = {"f2": lambda victim: str(place[victim] // 10)}
        results = [
            row.model_copy(update={"node": update[row.federation](row.victim_id)}) if row.federation in update else row
            for row in made.results
        ]
        return made.model_copy(update={"results": results})

    found = change(batches(range(20)), batches(range(0)), folders(tmp_path))
    assert (found.first, found.second) == ((20, 20), (0, 20))
    assert found.paired
    assert found.probability == pytest.approx(mcnemar(0, 2))  # two updates of ten images each
    assert found.interval == pytest.approx(paired_interval(0, 0, 2, 0))
    assert found.judgement == "no difference shown"
    other = TapeIdentity(sha256="b" * 64, manifest_bytes=9)
    assert change(audit(range(20)), audit(range(0), tape=other), folders(tmp_path)).judgement == "better"


def test_equal_pictures_of_the_truth_are_the_same_victim(tmp_path):
    made = []
    for name in "ab":
        whole = audit(range(6 if name == "a" else 0), 6, tape=None)
        (tmp_path / name / "images").mkdir(parents=True)
        victims = []
        for number, victim in enumerate(whole.victims):
            # The second audit attacked the same images in another order.
            path = tmp_path / name / "images" / f"{victim.id}-truth.png"
            path.write_bytes(bytes([number if name == "a" else 5 - number]))
            victims.append(victim.model_copy(update={"truth": f"images/{victim.id}-truth.png"}))
        made.append(whole.model_copy(update={"victims": victims}))
    assert change(*made, folders(tmp_path)).paired
    (tmp_path / "b" / "images" / "f2-u0-i0-truth.png").write_bytes(b"another")
    assert not change(*made, folders(tmp_path)).paired


def test_attacks_of_one_audit_only_are_named(tmp_path):
    (found,) = compare(audit(range(3), attacks=(PLAIN, ADAPTIVE)), audit(range(3)), folders(tmp_path))
    assert [one.attack for one in found.changes] == [ANY, PLAIN]
    assert "Run in one of the audits only, and counted under 'any attack' there: Ignore." in found.note


def test_federations_belong_together_by_model_images_and_defence(tmp_path):
    one, other = audit(range(3)), audit(range(3), defence="cvb")
    assert len(compare(one, other, folders(tmp_path))) == 1  # one of each
    two = one.model_copy(update={"federations": [*one.federations, federation("f3", "prune", model="mlp")]})
    assert compare(two, one, folders(tmp_path))[0].titles[0] == "LeNet with PRECODE on faces"
    with pytest.raises(ValueError, match="have no federation in common"):
        compare(two, other, folders(tmp_path))


def test_verdicts_flags_and_accuracy_are_compared(tmp_path):
    (found,) = compare(
        audit(range(0), 64, attacks=(PLAIN, ADAPTIVE), final_accuracy=0.7),
        audit(range(0), 4, attacks=(PLAIN, ADAPTIVE), final_accuracy=0.6),
        folders(tmp_path),
    )
    assert [one.verdict for one in found.verdicts] == ["held against everything tried", "not shown to leak"]
    assert found.flags_gone == ()
    assert found.flags_new == ("too-few-victims",)
    assert found.accuracy == (0.7, 0.6)


def test_without_truth_nothing_is_compared(tmp_path):
    blind = audit(range(3))
    blind = blind.model_copy(
        update={"results": [r.model_copy(update={"ssim": None, "baseline_ssim": None}) for r in blind.results]}
    )
    (found,) = compare(audit(range(3)), blind, folders(tmp_path))
    assert found.changes == ()
    assert "not known how many images were reconstructed" in found.note
    assert headline([found]) == "The audits cannot be compared."


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Simulated: 95 % intervals of independent and of paired differences miss at most about 1 in 20."""
    rng = np.random.default_rng(0)
    first, second, n, missed, missed_paired = 0.3, 0.1, 40, 0, 0
    for _ in range(400):
        a, b = rng.binomial(n, first), rng.binomial(n, second)
        low, high = difference_interval((a, b), (n, n))
        missed += not low <= first - second <= high
        both, only, other, neither = rng.multinomial(n, [0.08, first - 0.08, second - 0.08, 1 - first - second + 0.08])
        low, high = paired_interval(both, only, other, neither)
        missed_paired += not low <= first - second <= high
    assert missed < 30
    assert missed_paired < 30
    assert mcnemar(3, 3) == 1.0
    assert mcnemar(6, 0) == pytest.approx(2 / 64)


def test_the_page(tmp_path):
    hostile = audit(range(12), model="<script>alert(1)</script>")
    found = compare(hostile, audit(range(2), model="<script>alert(1)</script>"), folders(tmp_path))
    page = render_comparison(found, ("before", "<b>after</b>"))
    assert "Fewer images are reconstructed than before." in page
    assert "<script" not in page
    assert "&lt;b&gt;after" in page
    assert 'class="better">better' in page
    assert not re.search(r"(?:src|href)=", page)


@pytest.mark.parametrize(("first", "second", "code"), [(12, 2, 0), (2, 12, 1), (5, 5, 0)])
def test_the_command_and_its_exit_codes(tmp_path, first, second, code):
    for name, back in (("a", first), ("b", second)):
        (tmp_path / name).mkdir()
        write_audit(audit(range(back), tape=None), tmp_path / name)
    arguments = ["compare", str(tmp_path / "a"), str(tmp_path / "b" / "audit.json"), "--html", str(tmp_path / "c.html")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    assert f"{first} of 20" in result.stdout
    assert "Verdict: leaks" in result.stdout
    assert f"written: {tmp_path / 'c.html'}" in result.stdout
    assert (tmp_path / "c.html").stat().st_mode & 0o077 == 0


def test_records_that_cannot_be_compared_are_2(tmp_path):
    for name, whole in (("a", audit([0], control=False)), ("b", audit([0], control=False))):
        (tmp_path / name).mkdir()
        write_audit(whole, tmp_path / name)
    (tmp_path / "b" / "audit.json").write_text("{}")
    result = CliRunner().invoke(app, ["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    assert result.exit_code == 2
    assert "is not an audit record" in result.stderr
