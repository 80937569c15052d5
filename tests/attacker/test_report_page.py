from __future__ import annotations

import base64
import io
import re
import stat
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from attacker.audit.record import ImageResult, VictimImage
from attacker.audit.run import audit_tapes
from attacker.audit.subject import TapeSource
from attacker.report.figures import accuracy_chart
from attacker.report.page import render_page, write_report
from tests.attacker.records import ADAPTIVE, FIRST, PLAIN, federation, left_out, record, summary
from tests.attacker.taped_federation import tape_federation

HOSTILE = "<script>alert(1)</script>"
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects what the tests ask about, and refuses tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[dict[str, str]] = []
        self.addresses: list[str] = []
        self.headings: list[int] = []
        self.tags: set[str] = set()
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        given = dict(attrs)
        if tag == "img":
            self.images.append(given)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        self.addresses += [
            value for key, value in attrs if key in ("src", "href", "srcset", "action", "data", "poster")
        ]
        assert not [key for key in given if key.startswith("on")]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self.text += " " + data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """Two models' undefended and defended federations, audited for real, on one page."""
    out = tmp_path_factory.mktemp("audited")
    sources = []
    for model, defence in (("lenet", "none"), ("mlp", "none"), ("mlp", "precode:latent=8")):
        nodes = (HOSTILE, "7") if defence == "none" else ()
        taped = tape_federation(out / f"{model}-{defence[:4]}", model=model, defence=defence, rounds=1, nodes=nodes)
        sources.append(TapeSource(tape=taped.tape))
    attacks = [FIRST, "inverting-gradients:iterations=2"]
    return out, audit_tapes(sources, out=out, attacks=attacks, victims=2, title=f"Audit {HOSTILE}")


@pytest.fixture(scope="module")
def page(audited) -> Page:
    folder, found = audited
    return Page(render_page(found, folder))


def test_the_file_is_whole_private_and_small(audited, tmp_path):
    folder, found = audited
    path = write_report(found, folder=folder, out=tmp_path / "a" / "report")
    assert path.is_absolute()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    assert text == render_page(found, folder)
    assert text.rstrip().endswith("</html>")
    assert len(text) < 500_000


def test_nothing_is_fetched_and_nothing_runs(audited, page):
    folder, found = audited
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    css = re.search(r"<style>(.*?)</style>", render_page(found, folder), re.DOTALL)[1]
    assert "url(" not in css
    assert "@import" not in css


def test_every_picture_has_words_and_shows_something(page):
    assert len(page.images) == 2 * 2 + 2 * 3 + 2 * 3  # truth and those attacks that fit the model
    assert len({image["alt"] for image in page.images}) > len(page.images) / 2
    for image in page.images:
        assert image["alt"]
        with Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))) as picture:
            pixels = np.asarray(picture)
        assert pixels.shape == (8, 8)
        assert pixels.min() < pixels.max()


def test_hostile_names_are_text(page):
    assert "script" not in page.tags
    assert f"Audit {HOSTILE}" in page.words
    assert any(HOSTILE in image["alt"] for image in page.images)


def test_headings_are_in_order(page):
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(page.headings, page.headings[1:], strict=False))


def test_the_verdict_comes_first_and_all_that_was_asked_for_is_there(page):
    text = page.words.replace("\u00a0", " ")
    verdict = text.index("PRECODE (latent=8) does not stop the leak on MLP: 2 of 2 images came back")
    order = ["What was tried", "The images, and what came back", "How often each attack succeeded"]
    order += ["What the defence costs", "Failures and gaps", "Terms", "Settings, seeds and machine"]
    places = [verdict, *(text.index(heading) for heading in order)]
    assert places == sorted(places)
    for wanted in ("honest-but-curious", "34 to 100 %", "the first layer 'conv1' is a Conv2d", "FedSGD"):
        assert wanted in text, wanted
    assert "These are first steps of training: it has used 2 images so far" in text


def test_a_record_without_truth_has_labelled_boxes_and_no_similarity(tmp_path):
    taped = tape_federation(tmp_path, rounds=1, evaluation=False)
    found = audit_tapes([TapeSource(tape=taped.tape)], out=tmp_path / "audit", attacks=[FIRST], victims=1)
    page = Page(render_page(found, tmp_path / "audit"))
    assert len(page.images) == 1
    assert "True image not known" in page.words
    assert "There is no evaluation.json beside the tape" in page.words
    assert "matching loss" in page.words or "First-layer inversion" in page.words
    assert not re.search(r"SSIM \d", page.words.split("The images, and what came back")[1].split("How often")[0])


def test_missing_and_foreign_pictures_become_boxes_and_are_named(audited, tmp_path):
    _, found = audited
    (tmp_path / "images").mkdir()
    (tmp_path / found.victims[0].truth).write_bytes(b"GIF89a")
    page = Page(render_page(found, tmp_path))
    assert page.images == []
    assert f"{found.victims[0].truth}: is no PNG file" in page.words
    assert f"{found.victims[1].truth}: cannot be read" in page.words


def test_failures_of_clients_tape_and_attacks_are_listed(tmp_path):
    broken = federation("f1", left_out=[left_out("9", "loss is NaN")], tape_problems=["x.safetensors: altered"], lost=3)
    page = Page(
        render_page(record([broken], [summary("f1", PLAIN, 0, failed=1, reasons=["RuntimeError: x"])]), tmp_path)
    )
    for wanted in ("Round 1, client 9: loss is NaN", "Tape: x.safetensors: altered", "3 updates could not be recorded"):
        assert wanted in page.words
    assert "Inverting Gradients failed on 1 images: RuntimeError: x" in page.words
    clean = Page(render_page(record([federation("f1")], [summary("f1", PLAIN, 0)]), tmp_path))
    assert "No client reply was left out" in clean.words


def test_costs_and_accuracy_of_a_pair(tmp_path):
    pair = [federation("f2", "precode", final_accuracy=0.61), federation("f1")]
    page = Page(render_page(record(pair, [summary("f1", PLAIN, 4), summary("f2", PLAIN, 0)]), tmp_path))
    assert "15,826 606,930 × 38 63.3 kB 2.4 MB × 38" in page.words
    assert "No defence: 70 % on test images after 2 rounds" in page.words
    assert "PRECODE: 61 % on test images after 2 rounds" in page.words
    unknown = federation("f1", accuracy=[], final_accuracy=None, final_loss=None)
    page = Page(render_page(record([unknown], []), tmp_path))
    assert "The accuracy is not known" in page.words


def test_long_training_is_not_called_first_steps(tmp_path):
    long = federation("f1", batch_size=5000)
    page = Page(render_page(record([long], []), tmp_path))
    assert "The training has used 40,000 images" in page.words
    page = Page(render_page(record([federation("f1", protocol="fedavg")], []), tmp_path))
    assert "How many images the training has used is not known" in page.words


def test_a_gallery_too_large_for_the_page_says_what_is_left_out(tmp_path):
    (tmp_path / "images").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)
    victims, rows = [], []
    for i in range(6):
        Image.fromarray(noise).save(tmp_path / "images" / f"v{i}.png")
        place = {"federation": "f1", "round": 1, "node": "7", "image": 0}
        victims.append(VictimImage(id=f"v{i}", label=0, label_name=None, truth=f"images/v{i}.png", **place))
        rows.append(_row(f"v{i}", place))
    found = record([federation("f1")], [summary("f1", PLAIN, 1, 6)], victims=victims, results=rows)
    text = render_page(found, tmp_path)
    page = Page(text)
    assert len(page.images) == 3
    assert "3 more attacked images are in the folder images" in page.words
    assert len(text) < 10_000_000


def _row(victim: str, place: dict[str, object]) -> ImageResult:
    names = {"attack": PLAIN, "model": "lenet", "defence": "none", "dataset": "faces"}
    figures = {"ssim": 0.7, "psnr": 20.0, "mse": 0.01, "baseline_ssim": 0.1, "label_accuracy": None}
    rest = {"matching_loss": 0.1, "seconds": 1.0, "iterations": 9, "reconstruction": None}
    return ImageResult(victim_id=victim, outcome="iteration_limit", reason="", **place, **names, **figures, **rest)


def test_the_chart_spans_its_frame():
    chart = accuracy_chart(
        [federation("f1", accuracy=[{"round": r, "accuracy": r / 2, "loss": 1.0, "usable": 1} for r in range(3)])]
    )
    (line,) = chart.lines
    assert line.dots[0] == (chart.left, chart.bottom)
    assert line.dots[-1][0] == chart.right
    assert line.dots[-1][1] == chart.y_ticks[-1][0]
    assert [number for _, number in chart.x_ticks] == [0, 1, 2]
    assert accuracy_chart([federation("f1", accuracy=[])]) is None


def test_plain_and_adaptive_attacks_stand_side_by_side(tmp_path):
    federations = [federation("f1"), federation("f2", "precode"), federation("f3", "noise:std=0.1")]
    rows = [summary(one.id, spec, 0) for one in federations for spec in (PLAIN, ADAPTIVE)]
    whole = record(federations, rows)
    described = [one.model_copy(update={"answers": ["precode"]}) if one.adaptive else one for one in whole.attacks]
    text = render_page(whole.model_copy(update={"attacks": described}), tmp_path)
    section = text[text.index('<h2 id="success">') :]
    kinds = re.findall(r'<td class="name">(?:Inverting Gradients|Ignore)</td>\s*<td class="name">(.*?)</td>', section)
    assert kinds == ["–", "–", "plain", "adaptive", "plain", "plain"]
    assert "It takes into account: PRECODE." in text
    assert "It takes no account of a defence." in text
    older = [one.model_copy(update={"answers": []}) for one in whole.attacks]
    assert "It takes the defence into account." in render_page(whole.model_copy(update={"attacks": older}), tmp_path)
