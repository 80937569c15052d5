"""The first screen: the most disclosed images, and one sentence of advice."""

from __future__ import annotations

import pytest

from attacker.audit.record.evidence import VerdictLine
from attacker.audit.record.schema import Flag
from attacker.report.advice import advice
from attacker.report.gallery import MOST_FIRST, GalleryRow, Tile, most_disclosed
from attacker.report.verdict import Finding, Verdict
from tests.attacker.records import federation, record

LABELS = VerdictLine(subject="labels", state="leaks", sentence="All classes were read. A guess has none.")


def row(federation_id: str, ssim: float, *, back: bool = False, identified: bool = False, **changes) -> GalleryRow:
    truth = Tile(title="True image", alt="", path="truth.png", placeholder="")
    made = Tile(
        title="",
        alt="",
        path="made.png",
        placeholder="",
        counted=back,
        attack="dlg",
        ssim=ssim,
        identified=identified,
    )
    content = {"round": 1, "node": "7", "place": f"{federation_id} {ssim}", "tiles": (truth, made), "others": ()}
    return GalleryRow(federation=federation_id, title="", ssim=ssim, **content | changes)


def places(rows: list[GalleryRow]) -> list[str]:
    return [pair.place for pair in most_disclosed(rows)]


def test_what_was_reconstructed_comes_first_and_each_federation_has_its_turn():
    rows = [row("f1", one, back=True) for one in (0.7, 0.9, 0.8)]
    rows += [row("f2", 0.65, back=True), row("f2", 0.99)]
    assert places(rows) == ["f1 0.9", "f2 0.65", "f1 0.8"]
    assert len(rows) > MOST_FIRST


def test_where_nothing_was_reconstructed_an_identified_image_comes_first():
    rows = [row("f1", 0.5), row("f1", 0.2, identified=True), row("f1", 0.4)]
    assert places(rows) == ["f1 0.2", "f1 0.5", "f1 0.4"]


def test_the_same_image_comes_once_and_rows_without_a_picture_not_at_all():
    truth = row("f1", 0.9).tiles[:1]
    rows = [row("f1", 0.9, repeated=True), row("f1", 0.8, tiles=truth), row("f1", 0.1)]
    assert places(rows) == ["f1 0.1"]


def judged(finding: Finding, name: str = "f1", **changes) -> Verdict:
    return Verdict(federation=name, finding=finding, sentence="", **changes)


@pytest.mark.parametrize(
    ("finding", "beginning"),
    [
        (Finding.LEAKS, "Keep these updates from any server that must not see the images, or protect them:"),
        (Finding.LEAKS_ADAPTIVE, "Do not rely on PRECODE alone, which an attacker who knows it gets past:"),
        (Finding.LEAKS_IN_PART, "Treat these updates as leaking, look at the pictures, and protect them:"),
        (Finding.NOT_SHOWN, "Do not report this as protected: audit again when new attacks appear."),
        (Finding.NOT_KNOWN, "Conclude nothing from this audit: attack other images"),
        (Finding.HELD, "Audit again after each change of the model"),
    ],
)
def test_each_finding_has_its_advice(finding, beginning):
    said = advice(record([federation("f1", "precode")], []), [judged(finding)])
    assert said.startswith(beginning)
    assert said.count(". ") == 0


def test_advice_goes_by_the_worst_finding_and_names_which_updates():
    pair = record([federation("f1"), federation("f2", "precode")], [])
    said = advice(pair, [judged(Finding.HELD, "f2"), judged(Finding.LEAKS)])
    assert said.startswith("Keep the updates of the federation marked “Leaks” below from any server")


def test_weak_evidence_is_mended_and_labels_that_leak_go_before_images_that_do_not():
    names = ("single-start", "too-few-victims", "budget-edge")
    flags = [Flag(federation="f1", name=name, attack=None, weak=True, sentence="It is so.") for name in names]
    weak = record([federation("f1")], []).model_copy(update={"flags": flags})
    assert advice(weak, [judged(Finding.NOT_SHOWN)]) == (
        "Do not report this as protected: attack more images (--victims) and give the attacks more time (--budget), "
        "then audit again."
    )
    assert "must not learn the labels" in advice(weak, [judged(Finding.NOT_SHOWN, lines=(LABELS,))])


def test_a_line_begins_with_its_number_and_goes_on_below():
    verdict = judged(Finding.NOT_SHOWN, lines=(LABELS,))
    assert verdict.begins(LABELS) == "All classes were read."
    assert verdict.goes_on(LABELS) == "A guess has none."
