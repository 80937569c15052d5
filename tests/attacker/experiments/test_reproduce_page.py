"""Figures, verdicts and the page: they say what the cells hold, and nothing else."""

from __future__ import annotations

import html
import json
import re

import pytest

from attacker import wording
from attacker.attacks.registry import attack_title
from attacker.experiments.attack_sets import is_adaptive
from attacker.experiments.cells import Point, VictimScore
from attacker.experiments.precode.figures import trade_off
from attacker.experiments.precode.finish import finish
from attacker.experiments.precode.page import headline
from attacker.experiments.precode.run import run_cells
from attacker.experiments.precode.summarise import curve, score
from attacker.experiments.precode.summary import AttackScore, SetupState, SetupSummary
from attacker.experiments.precode.which_attack_breaks import falls
from tests.attacker.reproductions import tiny

MATCHING = "inverting-gradients:iterations=4"


def victim(ssim, *, outcome="iteration_limit", baseline=0.1):
    return VictimScore(
        image=0, label=0, outcome=outcome, reason="", ssim=ssim, psnr=20.0, mse=0.01, baseline_ssim=0.05,
        guess_ssim=baseline, matching_loss=None,
    )  # fmt: skip


def summed_setup(defence, *, successes, adaptive=None, baseline=0, ssim=0.9, unfit=0):
    """Victims that the plain attack reconstructed, and an adaptive one where it was run.

    The first of four resemble the mean image, SSIM 0.7. Some more do not fit.
    """
    flat_rows = [victim(0.7 if place < baseline else 0.1) for place in range(4)]

    def attacked(spec, count, *, is_adaptive):
        rows = [victim(ssim if place < count else 0.1, baseline=flat_rows[place].ssim) for place in range(4)]
        rows += [victim(None, outcome="not_applicable") for _ in range(unfit)]
        return AttackScore(attack=spec, adaptive=is_adaptive, score=score(rows), seconds=1.0, reasons=[])

    attacks = [attacked(MATCHING, successes, is_adaptive=False)]
    if adaptive is not None:
        attacks.append(attacked("first-layer", adaptive, is_adaptive=True))
    best = score([victim(0.9 if place < max(successes, adaptive or 0) else 0.1) for place in range(4)])
    state = SetupState(epoch=0, baseline=score(flat_rows), attacks=attacks, best_by_own_measure=best, best_by_ssim=best)
    points = curve([Point(number=0, accuracy=0.5, loss=1.0)], 100, 1.0, "")
    return SetupSummary(
        data="digits", model="lenet", defence=defence, parameters=10, parameters_undefended=10, payload_bytes=40,
        payload_bytes_undefended=40, client_seconds=0.001, epsilon=None, central=points, federated=None,
        states=[state],
    )  # fmt: skip


def test_a_score_counts_what_was_tried():
    rows = [victim(0.6), victim(0.59), victim(None, outcome="failed"), victim(0.9, outcome="not_applicable")]
    found = score(rows)
    assert (found.victims, found.not_applicable, found.failed, found.successes) == (3, 1, 1, 1)
    assert score([victim(0.6, baseline=0.6), victim(0.8, baseline=0.8), victim(0.86, baseline=0.8)]).successes == 1
    assert found.rate == pytest.approx(1 / 3)
    assert found.interval == pytest.approx((0.0084, 0.9057), abs=1e-3)
    assert found.ssim == pytest.approx(0.595)
    assert score([rows[3]]).rate is None


@pytest.mark.parametrize(
    ("own", "assumption", "says"),
    [
        ({"successes": 2}, "plain", "knows nothing of a defence: 2 of 4"),
        ({"successes": 0, "adaptive": 3}, "adaptive", "Stops the plain attacks and falls to"),
        ({"successes": 0, "adaptive": 0}, "none tried", "plain and adaptive attacks"),
        ({"successes": 0}, "none tried", "no adaptive one was run"),
        ({"successes": 4, "baseline": 4, "ssim": 0.77}, "none tried", "The nearest was Inverting Gradients: 0 of 4"),
        ({"successes": 1, "baseline": 4}, "plain", "1 of 4 images were reconstructed"),
        ({"successes": 2, "unfit": 12}, "plain", ", 12 not attacked because it does not fit them, untrained."),
    ],
)
def test_what_protects_follows_from_the_figures(own, assumption, says):
    _, fall = falls([summed_setup("none", successes=4), summed_setup("precode", **own)])
    assert fall.assumption == assumption
    assert says in fall.sentence


def test_weak_attacks_prove_nothing():
    undefended, defended = falls([summed_setup("none", successes=0), summed_setup("precode", successes=0)])
    assert undefended.assumption == defended.assumption == "cannot tell"
    assert "too weak" in undefended.sentence
    assert "undefended model either" in defended.sentence


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "out"
    experiment = tiny(models=("lenet", "mlp"), defences=("none", "precode", "cvb"))
    setups, left_out = experiment.split()
    run_cells(experiment, experiment.cells(setups), folder)
    summary, page = finish(experiment, setups, left_out, folder)
    return summary, page


def text_of(page):
    plain = re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(plain).replace("\u00a0", " ").split())


def test_the_page_says_what_the_json_says(made):
    summary, page = made
    text = text_of(page.read_text())
    content = json.loads((page.parent / "results.json").read_text())
    assert content["scale"] == "smoke"
    assert headline(summary) in text
    assert len(content["setups"]) == 5
    for one in content["falls"]:
        assert " ".join(one["sentence"].split()) in text
    for one in content["setups"]:
        assert f"{one['central']['final'] * 100:.1f} %" in text
        assert f"{one['parameters']:,}" in text
        for state in one["states"]:
            for attack in state["attacks"]:
                found = attack["score"]
                name = wording.capitalised(attack_title(attack["attack"]))
                name += " (adaptive)" if is_adaptive(attack["attack"]) else ""
                if found["victims"]:
                    between = wording.interval(*found["interval"])
                    row = f"{name} {found['successes']} of {found['victims']} {between} {wording.figure(found['ssim'])}"
                else:
                    row = f"{name} does not apply"
                assert row in text, name


def test_the_best_guess_has_a_line_of_its_own_and_is_counted_from_the_threshold_on(made):
    summary, page = made
    states = [state for one in summary.setups for state in one.states]
    assert all(0 < state.baseline.ssim < 1 for state in states)
    text = text_of(page.read_text())
    for state in states:
        line = f"Best guess without the update {state.baseline.successes} of {state.baseline.victims} "
        assert f"{line}{wording.interval(*state.baseline.interval)} {wording.figure(state.baseline.ssim)}" in text


def test_ticks_are_not_rounded_to_another_place():
    narrow = summed_setup("none", successes=1)
    figure = trade_off([narrow.model_copy(update={"central": curve([narrow.central.points[0]], 4000, 1.0, "")})])
    assert "48.5 %" in figure


def test_the_page_is_one_file_without_network_and_its_pictures_have_words(made):
    _, page = made
    content = page.read_text()
    pictures = re.findall(r"<img[^>]*>", content)
    assert len(pictures) >= 2 * 4
    assert all('src="data:image/' in one and re.search(r'alt="[^"]{5,}"', one) for one in pictures)
    assert not re.search(r"(src|href)=\"(?!data:)", content)
    assert "<script" not in content
    assert page.stat().st_mode & 0o777 == 0o600


def test_combinations_that_do_not_exist_are_named(made):
    summary, page = made
    assert [(one.model, one.defence) for one in summary.left_out] == [("mlp", "cvb")]
    assert "CVB for MLP is left out: found no torch.nn.Conv2d layer" in text_of(page.read_text())


def test_an_mlp_falls_to_one_division_whatever_precode_does(made):
    summary, _ = made
    found = {one.defence: one for one in summary.falls if one.model == "mlp"}
    for one in found.values():
        assert one.assumption == "plain"
        assert one.attack in ("first-layer", "layerwise-inversion"), "two ways to the same exact image"
    mlp = next(one for one in summary.setups if (one.model, one.defence) == ("mlp", "precode"))
    for state in mlp.states:
        assert state.best_by_own_measure.successes == state.best_by_ssim.successes == state.attacks[0].score.victims
        assert state.best_by_ssim.ssim > 0.999
