"""The commands reproduce and recommend: what they refuse, their exit codes, and the search for a defence."""

from __future__ import annotations

import json
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
from attacker.experiments.defence_search.candidates import CandidateDefence, candidates
from attacker.experiments.defence_search.search import DefenceSearch, _Course
from attacker.experiments.precode.experiment import Experiment
from fl_precode.data import load_data
from tests.attacker.leaking_models import small_photographs
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


def searched(folder, *, workers=1, **changes):
    experiment = tiny(models=("mlp",), defences=("none",), attacks=("first-layer",), **changes)
    return DefenceSearch(experiment, folder, workers=workers)


def test_candidates_rise_in_cost_and_are_bounded():
    experiment = tiny(models=("lenet",), scale=replace(TINY, victims=8))
    found = candidates(experiment, "digits", "lenet", at_most=1000)
    assert [one.cost for one in found] == sorted(one.cost for one in found)
    defences = {one.defence for one in found}
    assert {"precode", "cvb", "cvb:before=conv3", "precode+noise:std=0.01", "cvb+ppp:std=0.1"} <= defences
    assert {(one.batch_size, one.local_steps) for one in found} == {(1, 1), (4, 1), (1, 4), (8, 1)}
    assert ("none", 1) not in {(one.defence, one.batch_size * one.local_steps) for one in found}
    few = candidates(experiment, "digits", "lenet", at_most=5)
    assert len(few) == 5
    assert set(few) <= set(found)
    assert few == candidates(experiment, "digits", "lenet", at_most=5)
    other = candidates(tiny(models=("lenet",), scale=replace(TINY, victims=8), seed=1), "digits", "lenet", at_most=5)
    assert [one.defence for one in few] != [one.defence for one in other]


def test_the_search_recommends_what_holds_and_says_why_the_others_do_not(tmp_path):
    scale = replace(TINY, search_rounds=60, clients=4)
    found = searched(tmp_path / "out", scale=scale).run(at_most=1000)
    assert found == searched(tmp_path / "out", scale=scale).run(at_most=1000)  # from finished cells
    content = json.loads((tmp_path / "out" / "recommendation.json").read_text())
    assert content["found"] is found.found
    # One division finds every image while the noise is small, and none when it is large.
    verdicts = {one.defence: one.verdict for one in found.trials}
    assert verdicts["noise:std=0.0001"] == "falls"
    if found.found:
        assert found.recommended == found.trials[-1]
        for protocol, accuracy in found.recommended.accuracy.items():
            assert accuracy >= found.recommended.undefended[protocol] - 0.01
    else:
        assert all(one.reason for one in found.trials)
    cells = [json.loads(path.read_text())["result"] for path in (tmp_path / "out" / "cells").glob("attack-*")]
    assert found.seconds_of_attacks == pytest.approx(sum(one["seconds"] for one in cells))
    for one in found.trials:
        assert (one.closest_ssim >= 0.6) == one.verdict.startswith("falls"), one
        assert one.closest_attack == "first-layer"


@pytest.mark.slow
def test_processes_change_neither_the_recommendation_nor_what_it_cost_to_know(tmp_path):
    scale = replace(TINY, search_rounds=5, clients=2)
    alone, crew = (searched(tmp_path / str(n), workers=n, scale=scale).run(at_most=4) for n in (1, 2))
    assert crew.model_copy(update={"seconds_of_attacks": alone.seconds_of_attacks}) == alone
    assert {one.verdict for one in alone.trials} >= {"falls", "cannot be judged"}  # by attacks, and by what comes later
    # Work ahead that was not wanted any more may be there, but nothing that was read is missing.
    made = [{path.name for path in (tmp_path / str(n) / "cells").iterdir()} for n in (1, 2)]
    assert made[0] <= made[1]


def test_places_that_are_only_considered_are_not_warned_of(caplog):
    found = candidates(tiny(models=("resnet20",), defences=("none",)), "digits", "resnet20", at_most=1000)
    assert any("before=stage1" in one.defence for one in found)
    assert not caplog.records


def test_searches_wait_until_accuracy_is_known(tmp_path, monkeypatch):
    experiment = tiny(models=("mlp",), defences=("none",), attacks=("first-layer", "inverting-gradients:iterations=3"))
    monkeypatch.setattr("attacker.experiments.defence_search.search.TOLERANCE", -1.0)  # nothing is that much better
    search = DefenceSearch(replace(experiment, scale=replace(TINY, search_rounds=60, clients=4)), tmp_path)
    verdicts = {one.defence: one.verdict for one in search.run(at_most=3).trials}
    assert set(verdicts.values()) <= {"falls", "costs accuracy"}
    costly = {defence for defence, verdict in verdicts.items() if verdict == "costs accuracy"}
    attacked = [json.loads(path.read_text())["cell"] for path in (tmp_path / "cells").glob("attack-*")]
    ran = {one["attacks"][0] for one in attacked if one["setup"]["defence"] in costly}
    assert ran == {"first-layer"}


def test_what_stands_every_attack_may_fall_to_a_patient_one(tmp_path, monkeypatch):
    hasty = "inverting-gradients:iterations=1"
    monkeypatch.setattr("attacker.experiments.defence_search.search.every_attack_on", lambda *_: (hasty,))
    monkeypatch.setattr("attacker.experiments.defence_search.search.patient_attacks_on", lambda *_: ("first-layer",))
    monkeypatch.setattr("attacker.experiments.defence_search.search.TOLERANCE", 1.0)
    monkeypatch.setattr("attacker.experiments.defence_search.search.LEARNT", -1.0)
    found = DefenceSearch(tiny(models=("mlp",), defences=("none",)), tmp_path).run(at_most=4)
    fell = [one for one in found.trials if one.reason.startswith("patient first-layer inversion brings back")]
    assert fell
    assert all(one.verdict == "falls when judged" and one.closest_attack == "first-layer" for one in fell)
    made = [json.loads(path.read_text())["cell"] for path in (tmp_path / "cells").glob("attack-*")]
    patient = [one for one in made if one["attacks"] == ["first-layer"]]
    # Without a defence it is tried first, because one step brought nothing back there.
    patient = [one for one in patient if one["setup"]["defence"] != "none"]
    assert {one["setup"]["defence"] for one in patient} == {
        one.defence for one in found.trials if one in fell or one.verdict == "recommended"
    }
    assert {one["part"] for one in patient} == {"judged"}


def test_exit_code_1_when_the_attacks_cannot_tell(tmp_path):
    result = invoke(
        "recommend", "--out", tmp_path / "out", "--model", "lenet", "--data", "digits", "--attacks", "first-layer"
    )
    assert result.exit_code == 1
    assert "without any defence either" in " ".join(result.stdout.split())
    assert "verdict" not in result.stdout, "nothing was tried: no empty table"


@pytest.mark.parametrize("patient", [(), ("first-layer",)], ids=["neither", "the patient one does"])
def test_whether_attacks_can_tell_is_asked_of_patient_ones_too(tmp_path, monkeypatch, patient):
    monkeypatch.setattr(
        "attacker.experiments.defence_search.search.every_attack_on", lambda *_: ("inverting-gradients:iterations=1",)
    )
    monkeypatch.setattr("attacker.experiments.defence_search.search.patient_attacks_on", lambda *_: patient)
    found = DefenceSearch(tiny(models=("mlp",), defences=("none",)), tmp_path).run(at_most=1)
    assert bool(found.trials) is bool(patient)
    assert bool(re.search(r"any defence either \(SSIM -?0\.\d\d at most\)", found.sentence)) is not bool(patient)
    made = [json.loads(path.read_text())["cell"] for path in (tmp_path / "cells").glob("attack-*none*")]
    assert {one["protocol"] for one in made} == {"fedsgd"}, "one undefended step is the same gradient under both"


def test_an_experiment_needs_a_selection():
    with pytest.raises(ValueError, match="one or more different data"):
        Experiment(scale=TINY, data=(), models=("mlp",), defences=("none",))


@pytest.mark.parametrize(
    ("model", "defence", "batch", "attack"),
    [
        ("tests.attacker.small_transformers:Perceptron", "precode:latent=6", 1, "patch embedding"),
        ("tests.attacker.leaking_models:smooth_mlp", "none", 4, "activation span"),
    ],
)
def test_a_recommendation_is_judged_by_what_is_exact_on_its_model(tmp_path, model, defence, batch, attack):
    """Nothing has to be named: formulas face every candidate first."""
    data = small_photographs(tmp_path)
    experiment = tiny(models=(model,), data=(data,), defences=("none",), scale=replace(TINY, victims=4))
    search = DefenceSearch(experiment, tmp_path / "out")
    candidate = CandidateDefence(defence=defence, batch_size=batch, local_steps=1, payload_bytes=1, gradients=batch)
    with search._ahead:
        rejected = search._attacked(_Course(candidate=candidate), "validation", (0,), which="quick")
    assert rejected.verdict == "falls"
    assert rejected.reason == f"{attack} brings back 4 of 4 images under FedSGD"


def test_reproductions_run_what_is_exact_on_transformers_and_smooth_networks_of_any_defence():
    for defence in ("none", "precode", "noise:std=0.01", "prune:share=0.9"):
        setup = Setup(data="photos", model="mlp", defence=defence)
        cells = tiny(defences=(defence,)).cells([setup])
        attacked = {cell.attacks[0] for cell in cells if cell.kind == "attack"}
        assert {"patch-embedding", "activation-span", "spear"} <= attacked
        (choice, *_) = (cell for cell in cells if cell.kind == "choice")
        assert {"patch-embedding", "activation-span"} <= {*choice.attacks}
