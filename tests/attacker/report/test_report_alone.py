"""The page where no true image is known, and where something was assumed."""

from __future__ import annotations

import pytest

from attacker.audit.inputs.tape_source import TapeSource
from attacker.audit.record.confirmed import AGREES, confirms
from attacker.audit.record.schema import AssumptionEntry, AuditRecord
from attacker.audit.verdict.finish import finish_record
from attacker.report.gallery import MOST_LARGE, make_gallery
from attacker.report.page import LIMIT, render_page, write_report
from attacker.report.pictures import Album
from attacker.report.verdict import overall, verdicts
from tests.attacker.audits import audit_tapes
from tests.attacker.html_page import HOSTILE, Page
from tests.attacker.records import FIRST, PLAIN, federation, record, rows, summary
from tests.attacker.taped_federation import tape_federation
from tests.browser import chromium, open_page, serious_findings

EXACT = "layerwise-inversion"
BLIND = {"ssim": None, "psnr": None, "mse": None, "baseline_ssim": None}
ASSUMED = (
    AssumptionEntry(
        code="one-pass",
        sentence=f"Each client went through its images once {HOSTILE}.",
        doubt="An update that one pass cannot make.",
        line="[protocol]\nlocal-epochs = 1",
        updates=2,
    ),
    AssumptionEntry(code="scale", sentence="The images are not normalised.", doubt="Shifted colours.", updates=1),
)


@pytest.fixture(scope="module")
def audited(tmp_path_factory) -> tuple[object, AuditRecord]:
    """Two faces behind a LeNet, attacked for real without anybody knowing the truth; two assumptions put in."""
    out = tmp_path_factory.mktemp("alone")
    taped = tape_federation(out, model="lenet", dataset="faces", rounds=1, evaluation=False)
    found = audit_tapes(
        [TapeSource(tape=taped.tape)], out=out, attacks=[EXACT, "inverting-gradients:iterations=3", FIRST], victims=2
    )
    assume = [one.model_copy(update={"assumptions": list(ASSUMED)}) for one in found.federations]
    return out, finish_record(found.model_copy(update={"federations": assume}))


def blind_record(own, *summaries) -> AuditRecord:
    return finish_record(record([federation("f1", truth_known=False)], list(summaries), results=own))


def test_an_exact_formula_whose_gradient_is_the_update_confirms_itself(audited):
    _, found = audited
    sure = [row for row in found.results if confirms(row)]
    assert [row.attack for row in sure] == [EXACT, EXACT]
    assert all(row.recovered_label is not None for row in sure)
    (verdict,) = verdicts(found)
    assert "The update itself confirms 2 of 2 images: layer-wise inversion found them by an exact formula" in (
        verdict.sentence
    )
    assert overall([verdict]) == (
        "Images were computed from this federation's updates, and the updates themselves confirm two of two."
    )


@pytest.mark.parametrize(
    "change",
    [{"matching_loss": 2 * AGREES}, {"matching_loss": None}, {"outcome": "iteration_limit"}, {"attack": PLAIN}],
    ids=str,
)
def test_nothing_else_confirms_itself(change):
    """Neither a formula whose image gives another update, nor one whose equations fall short, nor a search."""
    sure = {"outcome": "converged", "matching_loss": AGREES / 2, **BLIND}
    assert confirms(rows("f1", EXACT, 1, **sure)[0])
    own = rows("f1", EXACT, 1, **sure)[0].model_copy(update=change)
    assert not confirms(own)
    found = blind_record([own], summary("f1", own.attack, None, 1))
    assert "confirms" not in found.verdicts[0].sentence
    assert "whether images were reconstructed is not known" in found.verdicts[0].sentence
    assert overall(verdicts(found)) == (
        "Whether training images were reconstructed cannot be counted without the true ones: look at the pictures."
        if own.reconstruction
        else "Nothing can be concluded about this federation."
    )


def test_without_truth_the_sentence_says_how_near_a_search_came_and_which_classes_it_read():
    own = rows("f1", PLAIN, 2, **BLIND, matching_loss=0.002, starting_loss=[40.0, 0.1], recovered_label=[3, 7])
    found = blind_record(own, summary("f1", PLAIN, None, 2))
    assert "Inverting Gradients came nearest to an update: its matching loss fell from 40 to 0.002" in (
        found.verdicts[0].sentence
    )
    assert "Read from the updates: classes 3 and 7." in found.verdicts[0].sentence


def test_pictures_without_truth_are_large_and_the_most_credible_comes_first(audited, tmp_path):
    folder, found = audited
    gallery = make_gallery(found, {"f1": "open"}, Album(folder), LIMIT)
    assert not gallery.compared
    for row in gallery.rows:
        assert row.large
        assert [tile.attack.partition(":")[0] for tile in row.tiles] == [EXACT, "inverting-gradients"]
        assert [tile.confirmed for tile in row.tiles] == [True, False]
        assert "True image not known" in row.place
    many = [one.model_copy(update={"attack": f"dlg:iterations={n}"}) for n in range(9) for one in found.results[:1]]
    (row,) = make_gallery(
        found.model_copy(update={"results": many, "victims": found.victims[:1]}), {"f1": ""}, Album(folder), LIMIT
    ).rows
    assert (len(row.tiles), len(row.others)) == (MOST_LARGE, 9 - MOST_LARGE)


def test_what_was_assumed_stands_before_every_figure(audited):
    folder, found = audited
    page = Page(render_page(found, folder))
    text = page.words
    order = [
        "Two facts are assumed, because nobody announced them (one-pass, scale)",
        "What was assumed Nobody announced these faings",
    ]
    order += [ASSUMED[0].sentence, "What would show it wrong: An update that one pass cannot make."]
    order += ["The line that settles it: [protocol] local-epochs = 1", "in 2 of 2 attacked updates"]
    order += [ASSUMED[1].sentence, "in 1 of 2 attacked updates", "Threat model: what the attacker knows"]
    places = [text.index(one) for one in order]
    assert places == sorted(places)
    assert "the update itself confirms this image" in text
    nothing = found.model_copy(update={"federations": [federation("f1", truth_known=False)]})
    assert "What was assumed" not in Page(render_page(nothing, folder)).words


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1440])
def test_in_a_browser(audited, tmp_path, width):
    folder, found = audited
    path = write_report(found, folder=folder, out=tmp_path / "report")
    with chromium() as browser:
        page, seen = open_page(browser, f"file://{path}", width=width)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert seen.messages == []
        assert serious_findings(page) == []
        page.locator("#victims img").first.scroll_into_view_if_needed()
        assert page.locator("#victims img").first.bounding_box()["width"] >= 200
        page.get_by_role("link", name="What was assumed").click()
        assert page.locator("#assumed").is_visible()
        page.context.close()
