"""The evidence pack: what is in it, what is not, and what it says where something is missing."""

from __future__ import annotations

import csv
import io
import json
import re
import stat
import subprocess
import sys
import zipfile

import pytest
from typer.testing import CliRunner

import fl_precode as flp
from attacker.audit.record.json_file import write_record
from attacker.audit.record.schema import AuditRecord, PrivacyClaims, PrivacyGuarantee, VerdictEntry
from attacker.cli.main import app
from attacker.report.pack.answers import NEVER, audited, guarantee_result, label_result
from attacker.report.pack.decision import MOST, decision_sheet
from attacker.report.pack.evidence import DESCRIPTIONS, evidence_page, make_pack, write_pack
from attacker.report.pack.pdf import NoPdfTool, pdf
from attacker.report.pack.requirements import AISVS, EDPB, NIST, as_csv, cross_table
from attacker.report.verdict import Finding
from tests.attacker.html_page import HOSTILE, Page
from tests.attacker.records import PLAIN, federation, record, rows, summary
from tests.attacker.rich_records import rich_record

SUBJECTS = ("images", "labels", "guarantees")
FILES = {*DESCRIPTIONS, "ro-crate-metadata.json"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An audit's folder without a page."""
    place = tmp_path_factory.mktemp("audit")
    write_record(rich_record(place, victims=4), place)
    return place


@pytest.fixture(scope="module")
def found(folder) -> AuditRecord:
    return rich_record(folder, victims=4)


def packed(found, folder, **changes):
    page = evidence_page(found, folder, **changes)
    return make_pack(found, source=(folder / "audit.json").read_bytes(), page=page)


@pytest.fixture(scope="module")
def whole(found, folder):
    return packed(found, folder)


@pytest.fixture
def no_tool(monkeypatch):
    monkeypatch.setitem(sys.modules, "weasyprint", None)


def told(found, finding, **changes) -> AuditRecord:
    """The record with one verdict on all of its federations."""
    verdicts = [
        VerdictEntry(federation=one.id, verdict=finding.value.lower(), sentence="A sentence.", cautions=[])
        for one in found.federations
    ]
    return found.model_copy(update={"verdicts": verdicts, **changes})


def test_the_command_writes_a_private_folder_with_every_file(folder, tmp_path, whole):
    out = tmp_path / "new" / "pack"
    done = CliRunner().invoke(app, ["report", str(folder), "--pack", str(out)])
    written = {path.name for path in out.iterdir()}
    assert written | {"evidence.pdf"} == FILES
    assert done.exit_code == (0 if "evidence.pdf" in written else 1), done.output
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o600}
    assert (out / "audit.json").read_bytes() == (folder / "audit.json").read_bytes()
    assert not list(out.parent.glob(".*")), "a part was left behind"
    assert not (folder / "report").exists(), "a page was written that nobody asked for"
    assert {name: (out / name).read_bytes() for name in written} == whole.files, "the same audit gave other bytes"


def test_one_function_writes_what_the_command_writes(folder, tmp_path, no_tool):
    pack = flp.report.save_pack(folder, tmp_path / "pack", redact=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "pack").iterdir()} == pack.files
    assert "pip install 'fl-precode[pdf]'" in pack.missing[0]
    with pytest.raises(ValueError, match="holds something already"):
        flp.report.save_pack(folder, tmp_path / "pack")


def test_a_zip_has_the_same_files_and_the_same_bytes_each_time(whole, tmp_path):
    first, second = (write_pack(whole, tmp_path / name) for name in ("a.zip", "b.ZIP"))
    assert first.read_bytes() == second.read_bytes()
    assert stat.S_IMODE(first.stat().st_mode) == 0o600
    with zipfile.ZipFile(first) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == whole.files
        assert {entry.external_attr >> 16 for entry in archive.infolist()} == {0o100600}


def test_without_a_pdf_tool_the_pack_is_written_and_says_so(no_tool, folder, tmp_path):
    done = CliRunner().invoke(app, ["report", str(folder), "--pack", str(tmp_path / "pack")])
    assert done.exit_code == 1
    assert {path.name for path in (tmp_path / "pack").iterdir()} == FILES - {"evidence.pdf"}
    assert "pip install 'fl-precode[pdf]'" in done.stderr
    crate = json.loads((tmp_path / "pack" / "ro-crate-metadata.json").read_text())
    assert "evidence.pdf" not in {entity["@id"] for entity in crate["@graph"]}


def test_a_tool_without_its_libraries_is_named(tmp_path):
    (tmp_path / "weasyprint.py").write_text("print('a long text')\nraise OSError('no pango')\n")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from attacker.report.pack.pdf import NoPdfTool, pdf\n"
        "try:\n    pdf('<p>')\nexcept NoPdfTool as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "does not find its libraries (Pango)" in done.stdout
    assert "a long text" not in done.stdout


@pytest.mark.parametrize("name", ["folder", "file"])
def test_what_is_there_already_is_not_mixed_with_a_pack(folder, tmp_path, name, no_tool):
    place = tmp_path / name
    if name == "folder":
        place.mkdir()
        (place / "evidence.html").write_text("sharp pictures")
    else:
        place.write_text("")
    done = CliRunner().invoke(app, ["report", str(folder), "--pack", str(place), "--redact"])
    assert done.exit_code == 1
    assert "holds something already" in done.stderr
    assert place.is_file() or [path.name for path in place.iterdir()] == ["evidence.html"]


def test_a_redacted_pack_holds_no_picture(found, folder, no_tool):
    blank, sharp = evidence_page(found, folder, redact=True), evidence_page(found, folder)
    assert "data:image" in sharp
    files = packed(found, folder, redact=True).files
    assert files["evidence.html"] == blank.encode()
    assert not any(b"data:image" in content or b"\x89PNG" in content for content in files.values())
    page = Page(blank)
    assert page.images == []
    assert "no picture is in this document" in page.words
    assert "left out" in page.words
    # Every number stays.
    numbers = [re.findall(r"SSIM -?\d\.\d+", Page(each).words) for each in (blank, sharp)]
    assert numbers[0] == numbers[1] != []


def test_records_that_cannot_be_used_end_with_code_2(folder, tmp_path, no_tool):
    altered = json.loads((folder / "audit.json").read_text())
    altered["results"] = altered["results"][:1]
    altered["results"][0]["federation"] = "f9"
    for number, content in enumerate(("{", json.dumps({"format": "other"}), json.dumps(altered), None)):
        place = tmp_path / str(number)
        place.mkdir()
        if content is not None:
            (place / "audit.json").write_text(content)
        done = CliRunner().invoke(app, ["report", str(place), "--pack", str(place / "pack")])
        assert done.exit_code == 2, done.output
        assert done.stderr.startswith("Error: ")
        assert not (place / "pack").exists()


def test_a_record_without_a_time_is_refused(found, folder, no_tool):
    with pytest.raises(ValueError, match="'yesterday', which is no time"):
        packed(found.model_copy(update={"created": "yesterday"}), folder)


@pytest.mark.parametrize("finding", list(Finding))
def test_the_sheet_says_the_verdict_and_what_to_do(found, finding):
    sheet = decision_sheet(told(found, finding))
    assert [line.finding for line in sheet.lines] == [finding, finding]
    assert sheet.headline.endswith(".")
    assert len(sheet.advice) >= 2
    assert ("secure aggregation" in " ".join(sheet.advice)) == (finding.leak or finding is Finding.LEAKS_IN_PART)
    assert len(sheet.not_tested) >= len(NEVER)
    assert any("did not run" in sentence for sentence in sheet.not_tested)


def test_the_sheet_shows_first_what_needs_a_decision_most(found):
    many = [found.federations[0].model_copy(update={"id": f"g{number}"}) for number in range(MOST + 2)]
    findings = [Finding.HELD] * (MOST + 1) + [Finding.LEAKS]
    verdicts = [
        VerdictEntry(federation=one.id, verdict=finding.value.lower(), sentence="", cautions=[])
        for one, finding in zip(many, findings, strict=True)
    ]
    sheet = decision_sheet(found.model_copy(update={"federations": many, "verdicts": verdicts}))
    assert sheet.lines[0].finding is Finding.LEAKS
    assert (len(sheet.lines), sheet.more) == (MOST, 2)
    assert (
        sheet.headline == f"An attacker reconstructs training images from the updates of 1 of {MOST + 2} federations."
    )


def test_labels_are_read_only_where_the_attacker_was_not_given_them(found):
    (given, *_) = audited(found)
    assert label_result(given)[0] == "not tested"
    withheld = federation("f1", labels="recovered")
    own = record([withheld], [summary("f1", PLAIN, 4, label_accuracy=0.75)])
    status, sentence = label_result(audited(own)[0])
    assert (status, "75 % of the labels" in sentence) == ("measured", True)
    blind = record([withheld], [summary("f1", PLAIN, None)])
    assert label_result(audited(blind)[0])[0] == "not known"


def test_a_guarantee_is_stated_with_its_unit_or_denied_with_the_reason():
    promised = PrivacyGuarantee(
        level="image", a_round=1.0, composed=4.0, delta=1e-5, sensitivity=1.0, noise_multiplier=1.0, classical=None,
        note="",
    )  # fmt: skip
    content = {"claimed_epsilon": 1.0, "claimed_delta": 1e-5, "claimed_sensitivity": 1.0, "notes": []}
    holds = PrivacyClaims(guarantees=[promised], holds=True, why_not="", **content)
    not_held = PrivacyClaims(guarantees=[], holds=False, why_not="the seed is known", **content)

    def said(**changes):
        return guarantee_result(audited(record([federation("f1", "noise:std=1", **changes)], []))[0])

    assert said(claims=holds) == (
        "measured",
        "The defence promises epsilon 4 for one image at delta 1e−5, over all rounds where that is known.",
    )
    assert said(claims=not_held) == ("not met", "There is no guarantee: the seed is known.")
    assert said()[0] == "not met"


def test_every_requirement_has_test_criterion_result_date_and_what_is_open(found):
    table = cross_table(found)
    lines = list(csv.DictReader(io.StringIO(as_csv(table))))
    assert len(lines) == 2 * len(table)
    assert {line["date"] for line in lines} == {found.created}
    assert all(line["test"] and line["result"] and line["not_tested"] for line in lines)
    assert all(line["criterion"] for line in lines if line["status"] != "not tested" or line["test"] != "No test.")
    by_clause = {
        (line["document"], line["clause"], line["topic"]): line for line in lines if "PRECODE" in line["federation"]
    }
    assert by_clause[NIST, "NISTAML.032", "Reconstruction"]["status"] == "not met"
    assert by_clause[NIST, "NISTAML.033", "Membership inference"]["status"] == "not tested"
    assert by_clause[AISVS, "11.2.4", "Differentially private optimisation for sensitive data"]["status"] == "not met"
    assert by_clause[EDPB, "paragraph 55", "Tests with attacks of the state of the art"]["status"] == "met"


def test_weak_evidence_is_no_test_by_the_state_of_the_art(found):
    table = cross_table(told(found, Finding.NOT_SHOWN))
    (row,) = [row for row in table if row.requirement.probe == "state-of-the-art"]
    assert [answer.status for title, answer in row.answers if "PRECODE" in title] == ["not met"]
    assert {answer.status for row in table if row.requirement.probe == "images" for _, answer in row.answers} == {
        "not shown"
    }


def test_names_are_text_wherever_they_come_from(folder, no_tool):
    named = rich_record(folder, victims=2).model_copy(update={"title": HOSTILE})
    own = named.model_copy(
        update={"federations": [one.model_copy(update={"model": f"=1+1{HOSTILE}"}) for one in named.federations]}
    )
    pack = packed(own, folder, redact=True)
    page = Page(pack.files["evidence.html"].decode())
    assert page.active == ["style", "script"]
    assert HOSTILE in page.words
    assert not re.search(r"(^|,)=1", pack.files["requirements.csv"].decode(), re.MULTILINE)


def test_without_truth_the_sheet_sends_people_to_the_pictures(folder, no_tool):
    blind = {"ssim": None, "psnr": None, "mse": None, "baseline_ssim": None}
    own = record(
        [federation("f1", truth_known=False)],
        [summary("f1", PLAIN, None)],
        results=rows("f1", PLAIN, 4, **blind),
        verdicts=[VerdictEntry(federation="f1", verdict="not known", sentence="No truth.", cautions=[])],
    )
    sheet = decision_sheet(own)
    assert sheet.headline == "This audit allows no conclusion."
    assert sheet.lines[0].images == "The true images are not known, so nothing can be counted."
    assert any("look at the pictures" in sentence for sentence in sheet.rests_on)
    assert "no evidence for release" in packed(own, folder).files["attack_results.json"].decode()


class TestPdf:
    @pytest.fixture(autouse=True)
    def _tool(self):
        try:
            pdf("<p>")
        except NoPdfTool as missing:
            pytest.skip(str(missing))

    def test_the_sheet_takes_two_pages_however_long_its_sentences_are(self, found, folder):
        import weasyprint

        from attacker.report.pack.pdf import _quiet

        long = {"model": "package.module:" + "factory_of_a_network_" * 9, "dataset": "npz:/data/" + "scans-" * 20}
        many = [found.federations[0].model_copy(update={"id": f"g{number}", **long}) for number in range(MOST + 1)]
        worst = told(found.model_copy(update={"federations": many, "victims": [], "results": []}), Finding.LEAKS)
        for one in (found, worst):
            front, _, rest = evidence_page(one, folder, redact=True).partition("<header>")
            with _quiet():
                document = weasyprint.HTML(string=front + rest[: rest.index("</h1>")]).render()
            places = {label: place[0] for label, place in flat(document.make_bookmark_tree())}
            headings = ["What was found", "What this rests on", "What to do", "What was not tested", "Decision"]
            assert [places[heading] for heading in headings] == [0, 0, 1, 1, 1]
            assert places[f"Annex: {one.title}"] == len(document.pages) - 1 == 2

    def test_charts_are_drawn_in_the_colours_of_the_page(self, whole):
        from attacker.report.pack.pdf import _for_print

        text = _for_print(whole.files["evidence.html"].decode())
        rules = re.search(r"<svg class=\"bar\"[^>]*><style>(.*?)</style>", text, re.DOTALL)[1]
        assert ".bar .fill{ fill: #b3261e; fill-opacity: .5; }" in rules
        assert "var(" not in rules
        assert "@media" not in rules

    def test_it_reads_nothing_outside_the_page(self, tmp_path, monkeypatch):
        from urllib.request import FileHandler

        def opened(*_):
            raise AssertionError("a file was opened")

        monkeypatch.setattr(FileHandler, "file_open", opened)
        (tmp_path / "secret.png").write_bytes(b"\x89PNG")
        assert pdf(f"<img src='file://{tmp_path}/secret.png'><img src='http://127.0.0.1:9/x.png'>").startswith(b"%PDF")


def flat(tree):
    for label, place, children, _ in tree:
        yield label, place
        yield from flat(children)
