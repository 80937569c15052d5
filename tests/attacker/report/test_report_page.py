from __future__ import annotations

import base64
import hashlib
import html
import io
import re
import stat

import numpy as np
import pytest
from PIL import Image

from attacker import wording
from attacker.audit.inputs.tape_source import TapeSource
from attacker.report.page import render_page, write_report
from tests.attacker.audits import audit_tapes
from tests.attacker.html_page import HOSTILE, Page
from tests.attacker.records import ADAPTIVE, FIRST, PLAIN, federation, left_out, record, summary
from tests.attacker.taped_federation import tape_federation


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
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)
    assert not page.tags & {"link", "iframe", "object", "embed", "base", "form"}
    assert page.active == ["style", "script"]
    text = render_page(found, folder)
    css = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    assert "url(" not in css
    assert "@import" not in css
    script = re.search(r"<script>(.*?)</script>\n</body>", text, re.DOTALL)[1]
    assert not re.search(r"innerHTML|eval|fetch|XMLHttp|import", script)
    assert len(script) < 5000
    policy = html.unescape(re.search(r'Content-Security-Policy" content="(.*?)"', text)[1])
    for kind, content in (("style", css), ("script", script)):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_every_picture_has_words_and_shows_something(page):
    # The first screen; truth, the average image and those attacks that fit the model.
    assert len(page.images) == 6 + 2 * 3 + 2 * 4 + 2 * 4
    assert len({image["alt"] for image in page.images}) > len(page.images) / 2
    for image in page.images:
        assert image["alt"]
        with Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))) as picture:
            pixels = np.asarray(picture)
        assert pixels.shape == (8, 8), image["alt"]
        assert pixels.min() < pixels.max()


def test_hostile_names_are_text(page):
    assert f"Audit {HOSTILE}" in page.words
    assert any(wording.short_node(HOSTILE) in image["alt"] for image in page.images)


def test_headings_are_in_order(page):
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(page.headings, page.headings[1:], strict=False))


def test_the_verdict_comes_first_and_all_that_was_asked_for_is_there(page):
    text = page.words.replace("\u00a0", " ")
    verdict = text.index("PRECODE (latent=8) does not stop the leak on MLP: 2 of 2 images were reconstructed")
    order = [
        "Threat model: what the attacker knows",
        "The images, and what was reconstructed",
        "How often each attack succeeded",
    ]
    order += ["Reconstruction error over training", "What the defence costs", "Failures and gaps"]
    order += ["Terms Federated learning", "Settings, seeds and machine"]
    places = [verdict, *(text.index(heading) for heading in order)]
    assert places == sorted(places)
    for wanted in ("honest-but-curious", "16 to 100 %", "the first layer 'conv1' is a Conv2d", "FedSGD"):
        assert wanted in text, wanted
    assert "These are first steps of training: it has used 2 images so far" in text


def test_a_record_without_truth_has_labelled_boxes_and_no_similarity(tmp_path):
    taped = tape_federation(tmp_path, rounds=1, evaluation=False)
    found = audit_tapes([TapeSource(tape=taped.tape)], out=tmp_path / "audit", attacks=[FIRST], victims=1)
    page = Page(render_page(found, tmp_path / "audit"))
    assert len(page.images) == 2  # on the first screen, and in the gallery
    assert "True image not known" in page.words
    assert "There is no evaluation.json beside the tape" in page.words
    assert "First-layer inversion the update itself confirms this image" in page.words
    assert not re.search(
        r"SSIM \d", page.words.split("The images, and what was reconstructed")[1].split("How often")[0]
    )


def test_missing_and_foreign_pictures_become_boxes_and_are_named(audited, tmp_path):
    _, found = audited
    (tmp_path / "images").mkdir()
    (tmp_path / found.victims[0].truth).write_bytes(b"GIF89a")
    page = Page(render_page(found, tmp_path))
    assert page.images == []
    assert f"{found.victims[0].truth}: is no PNG file" in page.words
    assert f"{found.victims[1].truth}: cannot be read (No such file or directory)" in page.words


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


def test_the_loss_that_was_replayed_and_who_named_it(tmp_path):
    focal = {"loss": "my_app.task:<focal>", "loss_named_by": "tape"}
    for changes, said in (
        (focal, "replay the clients' loss, here my_app.task:<focal> , as it was announced."),
        ({"loss_named_by": "auditor"}, "replay the clients' loss, here cross-entropy, as the auditor named it."),
        ({"loss_named_by": "nobody"}, "here cross-entropy, which is assumed: nobody named the loss"),
        ({}, ""),
    ):
        words_shown = Page(
            render_page(record([federation("f1", **changes)], [summary("f1", PLAIN, 4)]), tmp_path)
        ).words
        assert said in words_shown
        assert ("replay the clients' loss" in words_shown) == bool(said), "older records do not say"


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


def test_plain_and_adaptive_attacks_stand_side_by_side(tmp_path):
    federations = [federation("f1"), federation("f2", "precode"), federation("f3", "noise:std=0.1")]
    rows = [summary(one.id, spec, 0) for one in federations for spec in (PLAIN, ADAPTIVE)]
    whole = record(federations, rows)
    described = [one.model_copy(update={"answers": ["precode"]}) if one.adaptive else one for one in whole.attacks]
    text = render_page(whole.model_copy(update={"attacks": described}), tmp_path)
    section = text[text.index('<h2 id="success">') :]
    kinds = re.findall(r'<th scope="row">(?:Inverting Gradients|Ignore)</th>\s*<td class="name">(.*?)</td>', section)
    assert kinds == ["–", "–", "plain", "adaptive", "plain", "plain"]
    assert "It takes into account: PRECODE." in text
    assert "It takes no account of a defence." in text
    older = [one.model_copy(update={"answers": []}) for one in whole.attacks]
    assert "It takes the defence into account." in render_page(whole.model_copy(update={"attacks": older}), tmp_path)
