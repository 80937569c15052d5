"""No advice on noise: what it leaves to an attacker without a prior stands beside what one with a prior reaches."""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from time import sleep

import pytest

from attacker.audit.record.schema import NoiseAttack
from attacker.audit.scoring.leakage_images import LeakingImage, leak_of
from attacker.audit.scoring.noise_attack import EXPECTED, attack_under_noise
from attacker.report.leakage_words import noise_without_prior
from attacker.victim import Victim
from fl_precode.data import load_data
from fl_precode.models import build_model

ROOT = Path(__file__).resolve().parents[3]
PAGES = [
    *ROOT.glob("docs/*/*.md"), *ROOT.glob("attacker/report/*.py"), *ROOT.glob("attacker/report/templates/*"),
    *ROOT.glob("attacker/experiments/**/*.py"), *ROOT.glob("attacker/experiments/templates/*"), ROOT / "README.md",
]  # fmt: skip
ADVICE = (
    r"to hide (it|an image|images)\b", r"noise (that|which) (would )?hides? (it|an image|images)",
    r"would hide it", r"hides an image",
    r"noise needed", r"noise of [\d.e-]+ [^.]{0,60}\b(hides|protects|is enough)", r"takes a standard deviation",
)  # fmt: skip


@pytest.fixture(scope="module")
def images():
    data = load_data("digits", "")
    net = build_model("lenet", data.inputs, seed=0)
    victim = Victim(model=net, inputs=data.inputs, name="lenet")
    shown, labels = data.train.batch([0, 1])
    return [
        LeakingImage(
            victim=victim, defence="none", parameters={name: value.detach() for name, value in net.named_parameters()},
            buffers={}, image=shown[place : place + 1], label=labels[place : place + 1], seed=place,
        )
        for place in range(2)
    ]  # fmt: skip


def test_where_nothing_is_foreseen_a_search_with_a_prior_sees_the_image(images, monkeypatch):
    """Other data than the fault was found on: digits, 8x8."""
    monkeypatch.setattr("attacker.audit.scoring.noise_attack.PRIORS", (1e-5,))
    unit = statistics.median(leak_of(one).unit_rmse for one in images)
    found = attack_under_noise(images, unit, seconds=120.0)
    assert found.std == pytest.approx(EXPECTED / unit)
    assert len(found.ssim) == 2
    assert max(found.ssim) > 0.7, "seen by an attacker with a prior, where one without is expected to see nothing"
    assert found.reason == ""


def test_without_time_it_is_said_that_nothing_was_tried(images):
    found = attack_under_noise(images, 300.0, seconds=1e-9)
    assert found.ssim == []
    assert "None was tried here: searches would take longer" in noise_without_prior(300.0, found)


def test_the_first_search_of_a_process_does_not_make_an_iteration_free(images, monkeypatch):
    """What is set up once took longer than twenty iterations: nothing was left of them, and any time sufficed."""
    searches = []

    def search(*_):
        searches.append(sleep(0.05 if not searches else 0.001))

    monkeypatch.setattr("attacker.audit.scoring.noise_attack._search", search)
    assert attack_under_noise(images, 300.0, seconds=1e-9).ssim == []
    assert len(searches) == 2


def test_the_sentence_says_of_whom_it_speaks_and_what_the_others_reached():
    measured = NoiseAttack(std=0.005, expected_rmse=0.25, iterations=250, ssim=[0.85, None], reason="")
    text = noise_without_prior(50.0, measured)
    assert "puts an attacker without a prior off" in text
    assert "This is no advice" in text
    assert "At 0.005 short searches with such a prior" in text
    assert "SSIM of 0.85 and nothing" in text


@pytest.mark.parametrize("file", PAGES, ids=lambda path: path.name)
def test_no_page_and_no_document_advises_on_noise(file):
    text = " ".join(file.read_text().split())
    found = [match.group() for pattern in ADVICE for match in re.finditer(pattern, text, re.IGNORECASE)]
    assert not found
