"""The search for a defence: ladders, families, what noise costs, and what is recommended."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attacker.experiments.cells import Cell, Setup
from attacker.experiments.defence_search import disclosure, utility
from attacker.experiments.defence_search.chooser import FamilyChooser
from attacker.experiments.defence_search.climb import Climb
from attacker.experiments.defence_search.disclosure import Attacks, Disclosed
from attacker.experiments.defence_search.families import Family, Mechanism, families, with_group_norm
from attacker.experiments.defence_search.figures import keep_figures, read_recommendation
from attacker.experiments.defence_search.judged_again import judge_again
from attacker.experiments.defence_search.ladder import RUNGS, TOP, highest, lowest, settled
from attacker.experiments.defence_search.norms import undefended_norm
from attacker.experiments.defence_search.prefetch import Ahead
from attacker.experiments.defence_search.result import Recommendation, Trial
from attacker.experiments.defence_search.search import RECOMMENDATION_NAME, DefenceSearch
from attacker.experiments.defence_search.utility import Lost
from attacker.experiments.federations import federation_settings, run_in_process
from attacker.experiments.pooled_noise import pooled
from attacker.experiments.precode.experiment import Experiment
from attacker.experiments.work import victims
from fl_precode.defences.registry import gradient_defence
from fl_precode.federation.config import Settings
from tests.attacker.leaking_models import small_photographs
from tests.attacker.reproductions import TINY, tiny

FAMILY = Family(mechanism="client", quantile=0.5, beside="", batch_size=2, local_steps=2, model="mlp")
SMALL = replace(
    TINY, victims=4, search_rounds=4, search_clients=2, search_seeds=2, search_victims=4, judged=4, patient=4
)


def small(**changes: object) -> Experiment:
    return tiny(models=("mlp",), defences=("none",), **{"scale": SMALL, "attacks": ("first-layer",), **changes})


def test_the_ladder_is_logarithmic_from_1e_4_to_1() -> None:
    assert (len(RUNGS), RUNGS[0], RUNGS[-1]) == (10, 1e-4, 1.0)
    assert all(
        high / low == pytest.approx(10 ** (4 / 9), rel=1e-3) for low, high in zip(RUNGS, RUNGS[1:], strict=False)
    )


@pytest.mark.parametrize("edge", range(TOP + 2))
def test_bisection_finds_the_edge_and_asks_little(edge: int) -> None:
    asked: list[int] = []

    def above(rung: int) -> bool:
        asked.append(rung)
        return rung >= edge

    assert lowest(above) == (edge if edge <= TOP else None)
    assert len(asked) <= 4
    assert highest(lambda rung: rung < edge) == (edge - 1 if edge else None)


def test_a_rung_that_leaks_above_one_that_holds_is_said_and_climbed_over() -> None:
    assert settled({3: True, 4: False, 5: False, 6: True, 7: True}.__getitem__, 3) == (6, [4])
    assert settled(lambda rung: rung == 3, 3) == (None, [4])
    assert settled(lambda rung: True, TOP) == (TOP, [])


def test_families_cover_what_is_asked_and_leave_out_what_does_not_fit() -> None:
    known = families(small(), "digits", "mlp", most_images=64)
    assert {one.mechanism for one in known} == {"client", "example", "noise"}
    assert {one.quantile for one in known} == {0.25, 0.5, 0.75, 1.0}
    assert {one.batch_size for one in known} == {1, 4, 16, 64}
    assert {one.local_steps for one in known} == {1, 2, 4, 8}
    assert {one.beside for one in known} == {"", "precode", "prune:share=0.9"}, "an MLP has no convolution for CVB"
    assert all(one.batch_size * one.local_steps <= 64 for one in known)
    assert len({*known}) == len(known)
    assert known[0] == Family(mechanism="client", quantile=1.0, beside="", batch_size=16, local_steps=2, model="mlp")
    for one in known:
        gradient_defence(one.defence(0, 1.0))


def test_dp_sgd_takes_group_normalisation_where_batch_normalisation_forbids_it() -> None:
    known = families(tiny(models=("resnet20",), defences=("none",)), "digits", "resnet20", most_images=1)
    models = {one.mechanism: one.model for one in known}
    assert models == {"client": "resnet20", "noise": "resnet20", "example": "resnet20:norm=group"}
    assert with_group_norm("convnet:width=8") == "convnet:width=8,norm=group"


def test_noise_is_relative_to_the_undefended_norm(tmp_path: Path) -> None:
    with Ahead(tmp_path) as ahead:

        def norm(protocol: str, quantile: float = 1.0, mechanism: Mechanism = "client", **changes: object) -> float:
            family = replace(FAMILY, quantile=quantile, mechanism=mechanism)
            return undefended_norm(small(**changes), ahead, family, protocol)

        assert 0 < norm("fedsgd", 0.25) < norm("fedsgd")
        # An update is steps of the learning rate along gradients: much shorter than one gradient.
        assert norm("fedavg") < norm("fedsgd") / 10
        assert norm("fedsgd", mechanism="example") == norm("fedavg", mechanism="example")
        untrained = norm("fedsgd", scale=replace(SMALL, attacked=(0,)))
        assert untrained < norm("fedsgd"), "gradients grow in training"


@pytest.mark.parametrize(
    ("defence", "protocol", "left", "std"),
    [
        ("clip:max_norm=2+noise:std=0.5", "fedavg", "clip:max_norm=2", 0.5),
        ("noise:std=0.5", "fedsgd", "none", 0.5),
        ("dp:max_norm=2,noise_multiplier=0.5", "fedsgd", "dp:max_norm=2,noise_multiplier=0", 0.25),
        ("dp:max_norm=2,noise_multiplier=0.5", "fedavg", "dp:max_norm=2,noise_multiplier=0.5", 0.0),
        ("noise:std=0.5+clip:max_norm=2", "fedsgd", "noise:std=0.5+clip:max_norm=2", 0.0),
        ("precode+prune:share=0.9", "fedsgd", "precode+prune:share=0.9", 0.0),
    ],
)
def test_noise_that_comes_last_is_drawn_once_for_all_clients(
    defence: str, protocol: str, left: str, std: float
) -> None:
    steps = {"local_steps": 2} if protocol == "fedavg" else {}
    found = pooled(Settings(defence=defence, protocol=protocol, batch_size=4, **steps))  # type: ignore[arg-type]
    assert (found.settings.defence, found.std) == (left, std)
    assert found.of_mean([1, 1, 1, 1]) == pytest.approx(std / 2)
    assert found.of_mean([3, 1]) == pytest.approx(std * math.sqrt(10) / 4)


def test_pooled_noise_has_the_deviation_of_the_clients_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same federation with each client's own noise: other numbers, of the same size."""
    from attacker.experiments import federations
    from attacker.experiments.pooled_noise import Pooled
    from fl_precode.federation.federation import prepare

    setup = Setup(data="digits", model="mlp", defence="clip:max_norm=1+noise:std=0.01")
    cell = Cell(kind="federation", setup=setup, protocol="fedsgd", batch_size=4, runtime="process")
    settings = federation_settings(small(), cell)
    federation = prepare(settings)
    quiet = replace(settings, defence="clip:max_norm=1")
    model = federation.model()

    def stepped(noise: Pooled) -> torch.Tensor:
        state = federations._round(model, federation, noise, 1, torch.device("cpu"))
        return torch.cat([value.flatten() for value in state.values()])

    exact = stepped(Pooled(settings=quiet, std=0.0))
    own, together = stepped(Pooled(settings=settings, std=0.0)) - exact, stepped(pooled(settings)) - exact
    assert float(together.std()) == pytest.approx(float(own.std()), rel=0.02)
    assert float(own.std()) == pytest.approx(settings.learning_rate * 0.01 / math.sqrt(2), rel=0.02)
    assert not torch.equal(own, together)
    assert run_in_process(settings).curve == run_in_process(settings).curve


def test_seeds_are_averaged_and_a_hopeless_first_one_is_enough() -> None:
    lost = Lost(defended=(0.30, 0.32, None), undefended=(0.31, 0.31, 0.30))
    assert lost.mean == pytest.approx((0.01 - 0.01 + 0.30) / 3)
    assert lost.spread is not None
    assert not lost.kept
    assert Lost(defended=(0.30, 0.32), undefended=(0.31, 0.33)).kept, "one point is within the tolerance"
    assert Lost(defended=(0.3,), undefended=(0.3,)).spread is None


class _Stub:
    """Curves that are given, in the places of attacks and accuracy."""

    def __init__(self, leaks: Callable[[int], int], lost: Callable[[int], float], judged: int = 0) -> None:
        self.experiment, self._leaks, self._lost, self._judged = small(), leaks, lost, judged
        self.asked: list[tuple[str, str]] = []

    def rung_of(self, defence: str) -> int:
        std = gradient_defence(defence).parts[-1].std  # type: ignore[union-attr,attr-defined]
        return min(range(TOP + 1), key=lambda rung: abs(RUNGS[rung] - std))

    def on(self, family: Family, defences: dict, *, part: str, which: str, epochs: object = (0,)) -> Disclosed:
        self.asked.append((part, which))
        images = self._judged if part == "judged" else self._leaks(self.rung_of(defences["fedsgd"]))
        return Disclosed(images=images, victims=8, attack="first-layer", reason="back" if images else "", ssim=0.5)

    def lost(self, family: Family, defence: str, protocol: str) -> Lost:
        lost = self._lost(self.rung_of(defence))
        return Lost(defended=(0.5 - lost,) * 3, undefended=(0.5,) * 3)

    def why_not(self, family: Family, protocol: str) -> str:
        return ""


def climbed(leaks: Callable[[int], int], lost: Callable[[int], float], judged: int = 0) -> tuple[Climb, _Stub]:
    stub = _Stub(leaks, lost, judged)
    norms = {"fedsgd": 1.0, "fedavg": 1.0}
    climb = Climb(family=FAMILY, norms=norms, attacks=stub, utility=stub)  # type: ignore[arg-type]
    climb.run()
    return climb, stub


def test_curves_that_meet_are_judged_one_rung_above_what_was_needed() -> None:
    climb, stub = climbed(lambda rung: 4 if rung < 3 else 0, lambda rung: 0.002 * rung)
    assert (climb.verdict, climb.lowest, climb.judged_rung) == ("recommended", 3, 4)
    assert [one for one in stub.asked if one[0] == "judged"] == [
        ("judged", "quick"), ("judged", "searches"), ("judged", "searches"), ("judged", "patient")
    ]  # fmt: skip
    climb, _ = climbed(lambda rung: 4 if rung < 3 else 0, lambda rung: 0.0 if rung < 4 else 0.02)
    assert (climb.verdict, climb.judged_rung) == ("recommended", 3), "the rung above costs too much"


def test_curves_that_do_not_meet_say_how_far_they_are_apart() -> None:
    climb, stub = climbed(lambda rung: 4 if rung < 6 else 0, lambda rung: 0.0 if rung < 3 else 0.025)
    assert (climb.verdict, climb.lowest, climb.affordable) == ("costs accuracy", 6, 2)
    assert climb.values() == (pytest.approx(0.025), 0.5)
    assert "formulas reconstruct images below noise of 0.04642, which costs 2.5 points" in climb.reason
    assert "noise up to 0.0007743 keeps" in climb.reason
    assert ("validation", "searches") not in stub.asked, "what formulas break is searched no further"


def test_more_noise_that_leaks_is_climbed_over() -> None:
    climb, _ = climbed(lambda rung: 4 if rung in (0, 1, 3) else 0, lambda rung: 0.0)
    assert (climb.verdict, climb.lowest, climb.leaked) == ("recommended", 4, [3])


def test_unseen_images_that_are_reconstructed_are_the_end_of_a_family() -> None:
    climb, stub = climbed(lambda rung: 0, lambda rung: 0.0, judged=2)
    assert (climb.verdict, climb.reason, climb.values()) == ("falls when judged", "back", (0.0, 0.25))
    assert stub.asked[-1] == ("judged", "quick")
    climb, _ = climbed(lambda rung: 1, lambda rung: 0.0)
    assert (climb.verdict, climb.lowest) == ("falls", None)


def test_what_is_joined_keeps_the_most_images_and_the_closest() -> None:
    none, some = Disclosed(attack="a"), Disclosed(images=0, victims=8, attack="b", ssim=0.4)
    more = Disclosed(images=3, victims=4, attack="c", reason="back", ssim=0.7)
    assert none.joined(some) == some
    assert none.joined(some).holds
    assert not none.holds
    assert some.joined(more) == more == more.joined(some)
    few, many = (replace(some, updates=updates) for updates in (2, 4))
    assert few.joined(many).updates == many.joined(few).updates == 2
    assert some.joined(replace(some, victims=4, ssim=0.5, attack="d")) == replace(some, victims=4, ssim=0.5, attack="d")


def test_the_same_seed_chooses_the_same_families() -> None:
    known = families(small(), "digits", "mlp", most_images=64)

    def chosen(seed: int) -> list[Family]:
        chooser, found = FamilyChooser(known, seed), []
        for number in range(8):
            family = chooser.next()
            assert family is not None
            found.append(family)
            chooser.tell(family, lost=0.01 * (family.batch_size == 1), disclosed=number / 20)
        return found

    assert chosen(0) == chosen(0)
    assert len({*chosen(0)}) == 8
    assert chosen(0)[:6] == known[:6] == chosen(1)[:6]
    assert chosen(0)[6:] != chosen(1)[6:]
    few = FamilyChooser(known[:1], 0)
    assert few.next() == known[0]
    few.tell(known[0], lost=0.0, disclosed=0.0)
    assert few.next() is None


def test_judged_images_are_none_of_those_that_were_searched_with() -> None:
    setup = Setup(data="digits", model="mlp", defence="none")
    whole = Cell(kind="attack", setup=setup, protocol="fedsgd", batch_size=4)
    cells = [replace(whole, part="validation"), replace(whole, part="judged")]
    many, few = small(scale=replace(SMALL, victims=40)), small()
    searched, judged = ({one for client in victims(many, cell) for one in client} for cell in cells)
    assert not searched & judged
    assert victims(few, cells[1]) == victims(many, cells[1])[: len(victims(few, cells[1]))]


def search(folder: Path, *, workers: int = 1, **changes: object) -> DefenceSearch:
    return DefenceSearch(small(**changes), folder, workers=workers)


def test_the_search_recommends_what_holds_says_what_it_measured_and_draws_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("LEARNT", -1.0), ("TOLERANCE", 1.0), ("HOPELESS", 1.0)):  # nothing learns in four rounds
        monkeypatch.setattr(utility, name, value)
    # Single images, whose first layer is a division.
    scale = replace(SMALL, attacked=(0,), search_victims=2, judged=2, patient=2)
    found = search(tmp_path / "out", scale=scale).run(at_most=2)
    assert found == search(tmp_path / "out", scale=scale).run(at_most=2)  # from finished cells
    assert found == read_recommendation(tmp_path / "out" / RECOMMENDATION_NAME)
    (shown,) = found.trials
    assert found.found
    assert found.recommended == shown
    assert (shown.verdict, shown.reason, shown.gap_rungs, shown.mechanism) == ("recommended", "", 0, "client")
    assert [(one.attacks, one.disclosed) for one in shown.judged] == [
        ("formulas", 0), ("searches, untrained", None), ("searches, trained", None), ("patient searches", None)
    ]  # fmt: skip
    (updates,) = {one.updates for one in shown.judged if one.disclosed is not None}
    assert found.upper_bound == pytest.approx(1 - 0.025 ** (1 / updates))
    assert shown.closest_ssim is not None
    assert shown.closest_ssim < 0.6 < max(rung.closest_ssim or 0 for rung in shown.rungs), "behind its own noise"
    # One division finds every image while the noise is small, and none when it is large.
    assert shown.rungs[0].noise == 0
    assert shown.rungs[0].disclosed
    assert [rung.noise for rung in shown.rungs] == sorted(rung.noise for rung in shown.rungs)
    assert shown.noise in {rung.noise for rung in shown.rungs}
    assert all(len(one) == 2 for rung in shown.rungs for one in rung.accuracy.values())
    assert {one.level for rung in shown.rungs for one in rung.privacy} == {"image", "client"}

    paths = keep_figures([found], tmp_path / "out")
    assert [path.name for path in paths] == ["privacy-utility.svg", "privacy-utility.csv"]
    rows = list(csv.DictReader(paths[1].read_text().splitlines()))
    assert len(rows) == len(shown.rungs)
    assert [float(row["noise"]) for row in rows if row["recommended"] == "True"] == [shown.noise]
    assert paths[0].read_text().startswith("<?xml")

    more = judge_again(found, small(scale=replace(scale, judged=4, patient=3)), tmp_path / "again")
    assert (more.victims, more.patient_victims, found.victims, found.patient_victims) == (4, 3, 2, 2)
    assert more.recommended is not None
    assert [(one.attacks, one.victims) for one in more.recommended.judged][0] == ("formulas", 4)
    assert more.recommended.rungs == shown.rungs, "what was measured by noise is taken over"
    assert "on any of 4 images" in more.sentence
    with pytest.raises(ValueError, match="recommends no defence"):
        judge_again(found.model_copy(update={"recommended": None}), small(scale=scale), tmp_path / "again")
    with pytest.raises(ValueError, match="expected a search of the images, model and seed"):
        judge_again(found, small(scale=scale, seed=8), tmp_path / "again")


def test_what_falls_when_it_is_judged_again_is_recommended_no_more(tmp_path: Path) -> None:
    """The least noise behind a clip stops no division."""
    least = {"fedsgd": 1.0, "fedavg": 1.0}
    trial = Trial(
        defence="clip:max_norm=1+noise:std=0.0001", batch_size=1, local_steps=1, payload_bytes=1, gradients=1,
        verdict="recommended", reason="", closest_ssim=0.1, closest_attack="dlg", accuracy={}, undefended={},
        mechanism="client", model="mlp", quantile=0.5, norms=least, noise=1e-4,
    )  # fmt: skip
    earlier = Recommendation(
        data="digits", model="mlp", scale="smoke", seed=small().seed, found=True, sentence="held", recommended=trial,
        trials=[trial], victims=1, upper_bound=0.9, seconds_of_attacks=1.0, closest=0,
    )  # fmt: skip
    scale = replace(SMALL, attacked=(0,), judged=2, patient=2)
    now = judge_again(earlier, small(scale=scale), tmp_path)
    assert (now.found, now.recommended, now.upper_bound) == (False, None, None)
    assert now.trials[0].verdict == "falls when judged"
    assert "reconstructs 2 of 2 images under FedSGD" in now.trials[0].reason
    assert now.trials[0].closest_attack == "first-layer"


@pytest.mark.slow
def test_processes_change_neither_the_recommendation_nor_what_it_cost_to_know(tmp_path: Path) -> None:
    alone, crew = (search(tmp_path / str(n), workers=n).run(at_most=2) for n in (1, 2))
    assert crew.model_copy(update={"seconds_of_attacks": alone.seconds_of_attacks}) == alone


def test_records_of_before_there_were_ladders_are_readable(tmp_path: Path) -> None:
    trial = {
        "defence": "noise:std=0.001", "batch_size": 1, "local_steps": 1, "payload_bytes": 10, "gradients": 1,
        "verdict": "falls", "reason": "x", "closest_ssim": 0.9, "closest_attack": "first-layer", "accuracy": {},
        "undefended": {},
    }  # fmt: skip
    old = {
        "format": "fl-precode-recommendation", "version": 1, "data": "digits", "model": "mlp", "scale": "smoke",
        "seed": 0, "found": False, "sentence": "none", "recommended": None, "trials": [trial], "victims": 4,
        "upper_bound": None, "seconds_of_attacks": 1.0,
    }  # fmt: skip
    (tmp_path / "old.json").write_text(json.dumps(old))
    read = read_recommendation(tmp_path / "old.json")
    assert isinstance(read, Recommendation)
    assert (read.trials[0].rungs, read.closest) == ([], None)
    assert keep_figures([read], tmp_path) == []


@pytest.mark.parametrize("patient", [(), ("first-layer",)], ids=["neither", "the patient one does"])
def test_whether_attacks_can_tell_is_asked_of_patient_ones_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patient: tuple[str, ...]
) -> None:
    hasty = "inverting-gradients:iterations=1"
    monkeypatch.setattr(disclosure, "every_attack_on", lambda *_: (hasty,))
    monkeypatch.setattr(disclosure, "patient_attacks_on", lambda *_: patient)
    monkeypatch.setattr(utility, "LEARNT", 1.0)
    found = search(tmp_path, attacks=None).run(at_most=1)
    assert bool(found.trials) is bool(patient)
    assert ("any defence either (SSIM" in found.sentence) is not bool(patient)
    if found.trials:
        assert found.trials[0].verdict == "cannot be judged"
        assert "does not learn" in found.trials[0].reason


@pytest.mark.parametrize(
    ("model", "defence", "batch", "attack"),
    [
        pytest.param(
            "tests.attacker.small_transformers:Perceptron",
            "precode:latent=6",
            1,
            "patch embedding",
            marks=pytest.mark.slow,
        ),
        ("tests.attacker.leaking_models:smooth_mlp", "none", 4, "activation span"),
    ],
)
def test_a_family_is_judged_by_what_is_exact_on_its_model(
    tmp_path: Path, model: str, defence: str, batch: int, attack: str
) -> None:
    """Nothing has to be named: formulas face every family first."""
    data = small_photographs(tmp_path)
    scale = replace(SMALL, search_victims=4)
    experiment = tiny(models=(model,), data=(data,), defences=("none",), scale=scale)
    family = replace(FAMILY, model=model, batch_size=batch, local_steps=1)
    ahead = Ahead(tmp_path / "out")
    with ahead:
        found = Attacks(experiment, ahead).on(
            family, dict.fromkeys(disclosure.PROTOCOLS, defence), part="validation", which="quick"
        )
    assert (found.victims, found.updates) == (4, 4 // batch), "images of one update are one trial"
    assert found.reason == f"{attack} reconstructs 4 of 4 images under FedSGD"
