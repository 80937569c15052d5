"""reproduce hybrid and reproduce i2f: pieces, what is taken up, and pages that say what the figures say."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from attacker import wording
from attacker.cli.main import app
from attacker.experiments.hybrid.experiment import INVERSION_SCALES, Inversion, Inversions, InvertedUpdates, Ranks
from attacker.experiments.hybrid.page import attack_name, finish_inversions
from attacker.experiments.hybrid.page import headline as inversion_headline
from attacker.experiments.i2f.experiment import Influences, MeasuredInfluence
from attacker.experiments.i2f.page import Correlation, change_name, finish_influences, small
from attacker.experiments.i2f.page import headline as influence_headline
from attacker.experiments.i2f.scales import INFLUENCE_SCALES
from attacker.experiments.precode.run import run_pieces
from attacker.experiments.published_nets import ONE_LOGIT, initialised, model_of, published
from attacker.experiments.store import Store
from attacker.metrics.intervals import rank_correlation
from fl_precode.data import load_data
from fl_precode.models import build_model
from tests.browser import chromium, open_page

INVERSION = replace(
    INVERSION_SCALES["smoke"], nets=("dlg-lenet", "cnn2_c2", ONE_LOGIT), images=2,
    attacks=("layerwise-inversion", "hybrid", "dlg:iterations=5", "inverting-gradients:iterations=4"),
    stds=(0.0, 1e-3), noise_attacks=("layerwise-inversion", "then-refine:iterations=0"), noise_images=2,
)  # fmt: skip
INFLUENCE = replace(
    INFLUENCE_SCALES["smoke"], data=("digits",), images=6, random_iterations=20, random_images=1, few=1, large=(),
    iterations=60,
)  # fmt: skip


def text_of(page):
    plain = re.sub(r"<style>.*?</style>|<[^>]*>", " ", page.read_text(), flags=re.DOTALL)
    return " ".join(html.unescape(plain).split())


def stamps(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}


def made(comparison, finish, folder):
    pieces = comparison.pieces()

    def interrupt(state):
        if state.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_pieces(comparison, pieces, folder, watch=interrupt)
    before = stamps(folder)
    assert len(before) == 3
    assert run_pieces(comparison, pieces, folder) == len(pieces) - 3
    assert before.items() <= stamps(folder).items(), "what is there is not made again"
    assert run_pieces(comparison, pieces, folder) == 0
    return (comparison, *finish(comparison, folder))


@pytest.fixture(scope="module")
def inversions(tmp_path_factory):
    comparison = Inversions(scale=INVERSION, data="digits", device="cpu")
    return made(comparison, finish_inversions, tmp_path_factory.mktemp("inversions") / "out")


@pytest.fixture(scope="module")
def influences(tmp_path_factory):
    comparison = Influences(scale=INFLUENCE, data=("digits",), device="cpu")
    return made(comparison, finish_influences, tmp_path_factory.mktemp("influences") / "out")


def test_equations_are_solved_on_nets_that_determine_the_image(inversions):
    _, summary, _ = inversions
    found = {(net.name, one.attack.partition(":")[0]): one for net in summary.nets for one in net.attacks}
    assert found["dlg-lenet", "layerwise-inversion"].least > 80
    assert found[ONE_LOGIT, "layerwise-inversion"].least > 80, "by R-GAP's own entrance"
    assert (ONE_LOGIT, "hybrid") not in found
    assert found[ONE_LOGIT, "inverting-gradients"].images == 2
    nets = {net.name: net for net in summary.nets}
    assert nets["dlg-lenet"].rank == nets["dlg-lenet"].unknowns == 64
    assert nets["dlg-lenet"].solubility == 0
    clean, noisy = (one.psnr for one in summary.noise if one.attack == "layerwise-inversion")
    assert clean > noisy + 30, "noise is on the update"


@pytest.mark.slow
def test_ranks_of_the_literature():
    comparison = Inversions(scale=INVERSION, data="photos", device="cpu")
    found = comparison.make(Inversion(net="cnn2_c2"), None)
    assert isinstance(found, Ranks)
    assert (found.rank, found.unknowns, found.solubility, found.missing) == (1602, 3072, -1470, [1470])


def test_the_page_of_inversions_says_what_the_figures_say(inversions):
    _, summary, page = inversions
    text = text_of(page)
    assert inversion_headline(summary) in text
    assert json.loads((page.parent / "results.json").read_text())["scale"] == "smoke"
    for net in summary.nets:
        for one in net.attacks:
            row = f"{attack_name(one.attack)} {wording.figure(one.psnr, 1)} {wording.figure(one.least, 1)} to"
            assert row in text, row


def test_the_page_of_influences_says_what_the_figures_say(influences):
    _, summary, page = influences
    text = text_of(page)
    assert influence_headline(summary) in text
    for one in summary.noise:
        row = f"{one.images} of digits {change_name(one.change)} {small(one.measured)} {small(one.least)} to"
        assert row in text, row
    for one in summary.models:
        assert f"{one.start} {one.images} {one.rank} of 64 {small(one.largest)} {small(one.unit_rmse)}" in text


@pytest.mark.parametrize("which", ["inversions", "influences"])
def test_pages_are_one_file_without_network_and_their_pictures_have_words(which, request):
    _, _, page = request.getfixturevalue(which)
    content = page.read_text()
    pictures = re.findall(r"<img[^>]*>", content)
    assert len(pictures) >= 10
    assert all('src="data:image/' in one and re.search(r'alt="[^"]{5,}"', one) for one in pictures)
    assert not re.search(r"(src|href)=\"(?!data:)", content)
    assert "<script" not in content
    assert page.stat().st_mode & 0o777 == 0o600


def test_pages_name_the_file_of_the_images_and_not_its_folders(tmp_path):
    data = load_data("digits")
    file = tmp_path / "ward.npz"
    some = data.train.images[:60, 0].numpy(), data.train.labels[:60].numpy()
    np.savez(file, images=some[0], labels=some[1], class_names=np.array(data.train.class_names))
    spec = f"npz:{file}"
    few = {"images": 1, "noise_images": 1, "nets": ("cnn2_c2",), "attacks": ("layerwise-inversion",), "stds": ()}
    inversions = Inversions(scale=replace(INVERSION, **few), data=spec)
    few = {"images": 1, "others": 0, "stds": (1e-3,), "shares": (), "random_images": 0, "few": 0, "models": ()}
    influences = Influences(scale=replace(INFLUENCE, **few), data=(spec,))
    for number, (one, finish) in enumerate([(inversions, finish_inversions), (influences, finish_influences)]):
        folder = tmp_path / str(number)
        run_pieces(one, one.pieces(), folder)
        text = text_of(finish(one, folder)[1])
        assert "of ward.npz" in text
        assert str(tmp_path) not in text


@pytest.mark.browser
@pytest.mark.parametrize("which", ["inversions", "influences"])
def test_a_long_path_of_the_images_does_not_widen_a_narrow_page(which, request):
    _, _, path = request.getfixturevalue(which)
    with chromium() as browser:
        page, _ = open_page(browser, f"file://{path}", width=390, dark=False)
        name = "npz:/" + "images/" * 20 + "cifar10.npz"
        page.evaluate("name => document.querySelector('header p:last-child, p.soft').append(' ' + name)", name)
        assert name in page.inner_text("body")
        assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_influence_predicts_the_error_of_the_fit_and_damping_and_the_bound_do_not(influences):
    _, summary, _ = influences
    assert len(summary.noise) == 3
    for one in summary.noise[:2]:
        assert one.ratio == pytest.approx(1, abs=0.1)
        assert one.bound < one.i2f
        assert next(found.rho for found in one.correlations if found.name == "I2F") > 0.8
    risk = {one.start: one.unit_rmse for one in summary.models if one.model == "lenet"}
    assert max(risk["uniform"], risk["normal"]) < min(risk["kaiming"], risk["xavier"]) < risk["default"]


def test_what_is_too_large_for_a_spectrum_goes_by_products(tmp_path):
    comparison = Influences(scale=replace(INFLUENCE, large=("mlp",)), data=("digits",), device="cpu")
    (piece,) = [one for one in comparison.pieces() if one.way == "products"]
    found = comparison.make(piece, Store(tmp_path / "out"))
    assert isinstance(found, MeasuredInfluence)
    assert found.rank is None
    assert found.changes[0].i2f is None
    assert 0 < found.changes[0].bound < found.changes[0].rmse


def test_other_settings_are_other_pieces(tmp_path):
    store, piece = Store(tmp_path / "out"), Inversion(net="cnn2_c1", attack="inverting-gradients:iterations=2")
    found = []
    for seed in (0, 1):
        comparison = Inversions(scale=INVERSION, data="digits", seed=seed, device="cpu")
        assert store.read(piece, comparison.recipe(piece)) is None
        run_pieces(comparison, [piece], store.folder)
        found.append(store.result(piece, comparison.recipe(piece), InvertedUpdates).images[0].psnr)
    assert found[0] != found[1]


def test_initialisations_are_drawn_from_the_seed_and_differ():
    inputs = load_data("digits").inputs
    spread = {}
    for start in ("uniform", "normal", "kaiming", "xavier", "default"):
        one, other = (model_of("lenet", inputs, start=start, seed=3) for _ in range(2))
        weights = [parameter.detach() for parameter in one.parameters()]
        assert all(torch.equal(a, b) for a, b in zip(weights, other.parameters(), strict=True))
        spread[start] = float(weights[0].std())
    assert spread["uniform"] == pytest.approx(1 / 12**0.5, rel=0.1)
    assert spread["normal"] == pytest.approx(0.5, rel=0.1)
    assert len({round(value, 4) for value in spread.values()}) == 5
    with pytest.raises(ValueError, match="uniform, normal"):
        initialised(build_model("lenet", inputs, seed=0), "orthogonal", 0)
    with pytest.raises(ValueError, match="cnn2_c1"):
        published("cnn9", inputs)


def test_rank_correlation_has_the_interval_of_bonett_and_wright():
    rho, (low, high) = rank_correlation([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [2, 1, 3, 4, 5, 7, 6, 8, 10, 9])
    assert rho == pytest.approx(0.9636, abs=1e-4)
    # atanh(rho) = 1.9940, its standard error ((1 + rho²/2) / 7)^½ = 0.4573
    assert (low, high) == pytest.approx((0.7996, 0.9938), abs=1e-3)
    assert rank_correlation([1, 2, 3], [1, 2, 3]) is None
    assert rank_correlation([1, 1, 1, 1], [1, 2, 3, 4]) is None
    assert Correlation(name="a", rho=None, interval=None).rho is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["hybrid", "--scale", "huge"], "smoke, small, paper"),
        (["i2f", "--scale", "huge"], "smoke, small, paper"),
        (["hybrid", "--data", "photo"], "did you mean photos"),
        (["i2f", "--data", "photo"], "did you mean photos"),
        (["hybrid", "--data", "digits"], "does not fit images"),
    ],
)
def test_bad_usage_begins_nothing(tmp_path, arguments, says):
    result = CliRunner().invoke(app, ["reproduce", *arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2, result.output
    assert says in " ".join(result.stderr.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_the_commands_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "attacker.experiments.hybrid.experiment.INVERSION_SCALES", {"smoke": replace(INVERSION, data="digits")}
    )
    monkeypatch.setattr(
        "attacker.experiments.i2f.scales.INFLUENCE_SCALES",
        {"smoke": replace(INFLUENCE, images=2, few=1, models=(), random_images=0)},
    )
    for command in ("hybrid", "i2f"):
        options = ["reproduce", command, "--out", str(tmp_path / command), "--workers", "1"]
        first = CliRunner().invoke(app, options)
        assert first.exit_code == 0, first.output
        assert re.search(r"\b(\d+) of \1 pieces were made now", first.stdout)
        assert re.search(r"\b0 of \d+ pieces were made now", CliRunner().invoke(app, options).stdout)
