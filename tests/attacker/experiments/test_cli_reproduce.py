"""The commands reproduce and recommend: what they refuse, their exit codes, and the search for a defence."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from attacker.attacks import GradientMatching, build_attack
from attacker.attacks.gradient_matching.options import options_of
from attacker.cli.main import app
from attacker.experiments import scales
from attacker.experiments.attack_sets import attacks_on, every_attack_on, patient_attacks_on, without_knowledge
from attacker.experiments.cells import Setup
from attacker.experiments.precode.experiment import Experiment
from fl_precode.data import load_data
from tests.attacker.reproductions import TINY, tiny


def invoke(*arguments):
    return CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--scale", "huge"], "smoke, small, paper"),
        (["--data", "photo"], "did you mean photos"),
        (["--models", "lenett"], "no model"),
        (["--defences", "magic"], "no defence"),
        (["--defences", "ppp:std=0.1"], "precode+ppp"),
        (["--models", "mlp", "--defences", "none,cvb"], "fits none"),
        (["--defences", ","], "expected one or more different defences"),
        (["--defences", "none,none"], "expected one or more different defences"),
        (["--attacks", "magic"], "there is no attack"),
        (["--seed", "-1"], "--seed"),
        (["--ray-address", "local"], "expected HOST:PORT of a Ray cluster"),
        (["--ray-address", "auto", "--workers", "2"], "either --workers"),
    ],
)
def test_bad_input_is_bad_usage_and_begins_nothing(tmp_path, options, words):
    result = invoke("reproduce", "precode", "--out", tmp_path / "out", *options)
    assert result.exit_code == 2, result.output
    assert words in " ".join(result.stderr.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_a_scales_own_defence_that_fits_no_model_is_left_out():
    scale = replace(TINY, defences=("none", "cvb"))
    with pytest.raises(ValueError, match="'cvb' fits none of the models"):
        tiny(scale=scale, models=("mlp",), defences=("cvb",)).split()
    setups, left_out = tiny(scale=scale, models=("mlp",), defences=scale.defences).split()
    assert [one.defence for one in setups] == ["none"]
    assert [one.defence for one in left_out] == ["cvb"]
    assert "needs feature maps" in " ".join(left_out.values())


def test_images_that_are_not_there_fail(tmp_path):
    result = invoke("reproduce", "precode", "--out", tmp_path / "out", "--data", f"folder:{tmp_path / 'none'}")
    assert result.exit_code == 1
    assert "there is no folder" in result.stderr


def test_the_command_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(scales, "SCALES", {"smoke": TINY})
    options = ["reproduce", "precode", "--out", tmp_path / "out", "--data", "digits", "--models", "lenet"]
    options += ["--defences", "none", "--workers", "1"]
    first = invoke(*options)
    assert first.exit_code == 0, first.output
    assert re.search(r"\b(\d\d) of \1 pieces were made now", first.stdout)
    again = invoke(*options)
    assert re.search(r"\b0 of \d\d pieces were made now", again.stdout)
    cell = next((tmp_path / "out" / "cells").glob("attack-*"))
    cell.write_text(cell.read_text().replace('"label"', '"lable"'))
    damaged = invoke(*options)
    assert damaged.exit_code == 1
    assert cell.name in "".join(damaged.stderr.split())


def test_adaptive_attacks_of_the_registry_are_run_on_defences_only():
    assert [spec.partition(":")[0] for spec in attacks_on("none", TINY)] == list(without_knowledge())
    from attacker.attacks.registry import ATTACKS

    entry = replace(ATTACKS["inverting-gradients"], answers=frozenset({"precode"}))
    with ATTACKS.instead({"mine": entry}):
        assert "mine:preset=precode-paper,iterations=4,learning_rate=0.1" in attacks_on("precode", TINY)
        assert not any("mine" in spec for other in ("none", "cvb") for spec in attacks_on(other, TINY))


def test_a_recommendation_faces_every_attack_that_could_work():
    """Noise of 1e-3 on a LeNet was once recommended without the searches that come closest to its images."""
    names = [spec.partition(":")[0] for spec in every_attack_on("noise:std=0.001", TINY)]
    assert len(names) == len(set(names))
    assert {"hybrid", "then-refine", "dlg", "see-through-gradients", "defence-matched"} <= set(names)
    assert {"patch-embedding", "activation-span", "feature-inversion", "statistics-matching"} <= {*names}
    assert not {"ignore", "dropout-inversion", "portfolio"} & set(names)
    assert "ignore" in {spec.partition(":")[0] for spec in every_attack_on("precode", TINY)}
    assert "dlg:iterations=4" in every_attack_on("none", TINY)


def test_patient_attackers_have_more_of_everything():
    for defence in ("none", "prune:share=0.9", "noise:std=0.01", "precode", "cvb", "dropout:rate=0.3"):
        usual = {spec.partition(":")[0] for spec in attacks_on(defence, TINY)}
        patient = [build_attack(spec) for spec in patient_attacks_on(defence, TINY)]
        assert {one.name for one in patient} <= usual
        for one in patient:
            settings = options_of(one if isinstance(one, GradientMatching) else one.matching)
            assert (settings["iterations"], settings["restarts"], settings["total_variation"]) == (16, 4, 0.01)
    names = {spec.partition(":")[0] for spec in patient_attacks_on("prune:share=0.9", TINY)}
    assert names == {"inverting-gradients", "defence-matched"}


def test_images_named_as_medmnist_names_them(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (10, 8, 8), dtype=np.uint8)
    labels = (np.arange(10) % 2)[:, None]
    np.savez(
        tmp_path / "own.npz", train_images=images, train_labels=labels, test_images=images[:4], test_labels=labels[:4]
    )
    data = load_data(f"npz:{tmp_path / 'own.npz'}")
    assert (len(data.train), len(data.test)) == (10, 4)


def test_exit_code_1_when_the_attacks_cannot_tell(tmp_path):
    result = invoke(
        "recommend", "--out", tmp_path / "out", "--model", "lenet", "--data", "digits", "--attacks", "first-layer"
    )
    assert result.exit_code == 1
    assert "without any defence either" in " ".join(result.stdout.split())
    assert "verdict" not in result.stdout, "nothing was tried: no empty table"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--patient", "9", "--victims", "8"], "at most the 8 images"),
        (["--beside", "no-such.json"], "cannot be read"),
        (["--beside", __file__], "is no recommendation.json"),
        (["--model", "mlp,lenet"], "expected one model"),
    ],
)
def test_recommend_refuses_what_it_cannot_use(tmp_path, options, words):
    result = invoke("recommend", "--out", tmp_path / "out", *options)
    assert result.exit_code == 2, result.output
    assert words in " ".join(result.stderr.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_an_experiment_needs_a_selection():
    with pytest.raises(ValueError, match="one or more different data"):
        Experiment(scale=TINY, data=(), models=("mlp",), defences=("none",))


def test_reproductions_run_what_is_exact_on_transformers_and_smooth_networks_of_any_defence():
    for defence in ("none", "precode", "noise:std=0.01", "prune:share=0.9"):
        setup = Setup(data="photos", model="mlp", defence=defence)
        cells = tiny(defences=(defence,)).cells([setup])
        attacked = {cell.attacks[0] for cell in cells if cell.kind == "attack"}
        assert {"patch-embedding", "activation-span", "spear"} <= attacked
        (choice, *_) = (cell for cell in cells if cell.kind == "choice")
        assert {"patch-embedding", "activation-span"} <= {*choice.attacks}
