"""Leakage indices of an audited federation: equal to the analysis by hand, bounded, and silent about nothing."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from attacker.audit.audit import audit
from attacker.audit.inputs.tape_source import TapeSource
from attacker.audit.record.json_file import read_record
from attacker.audit.record.schema import ImageResult
from attacker.audit.scoring import leakage_summary as module
from attacker.audit.scoring.leakage_groups import spearman_interval
from attacker.audit.scoring.leakage_summary import leakage_summary
from attacker.audit.settings import AuditSettings
from attacker.audit.truth.base import Truth
from attacker.audit.verdict.finish import finish_record
from attacker.leakage.analyse import image_leak, noise_ranks
from attacker.leakage.released import draw_noise, released
from attacker.reasons import because
from attacker.report.repeat import command
from attacker.victim import Victim
from fl_precode.defences.registry import gradient_defence
from tests.attacker import tiny
from tests.attacker.audits import audit_tapes
from tests.attacker.records import rows
from tests.attacker.taped_federation import tape_federation

SPEC = tiny.inputs()


def problem(count=6, *, build=tiny.mlp, **changes):
    victim = tiny.victim(build(SPEC), SPEC)
    images = [tiny.images(SPEC, 1, seed=number) for number in range(count)]
    seen = [
        tiny.observe(victim, image, [number % 3], node=str(number % 2), round=number + 1, **changes)
        for number, image in enumerate(images)
    ]
    truths = [
        Truth(images=SPEC.denormalise(image), labels=torch.tensor([number % 3])) for number, image in enumerate(images)
    ]
    return victim, seen, truths


def measured(seen, errors) -> list[ImageResult]:
    mse = [error**2 for error in errors]
    places = {"round": [one.round for one in seen], "node": [one.node for one in seen]}
    return rows("f1", "dlg", len(seen), mse=mse, **places)


def test_rank_and_error_are_those_of_the_analysis():
    victim, seen, truths = problem()
    found = leakage_summary("f1", victim, "noise:std=0.001", seen, truths, [])
    units, ranks = [], []
    for one, truth in zip(seen, truths, strict=True):
        of = released(victim, truth.labels, parameters=one.parameters)
        leak, _ = image_leak(of, truth.images, generator=torch.Generator().manual_seed(0))
        units.append(leak.unit_rmse)
        ranks.append(leak.rank)
    assert found.unknowns == 36
    assert found.jacobian_rank == statistics.median(ranks) == 36
    assert found.unit_rmse == pytest.approx(statistics.median(units), rel=1e-9)
    assert [layer.name for layer in found.layers] == ["1", "3"]
    assert found.solubility is not None


def test_influence_is_that_of_the_defences_own_change():
    victim, seen, truths = problem()
    found = leakage_summary("f1", victim, "noise:std=0.001", seen, truths, [])
    expected = []
    for number, (one, truth) in enumerate(zip(seen, truths, strict=True)):
        generator = torch.Generator().manual_seed(number)  # each image has its own noise, whoever analyses it
        of = released(victim, truth.labels, parameters=one.parameters)
        leak, _ = image_leak(
            of, truth.images, defence=gradient_defence("noise:std=0.001"), generator=generator, exact=True
        )
        expected.append(leak.influence)
    by = {(one.group, one.name): one for one in found.influence}
    assert by["node", "0"].mean == pytest.approx(statistics.fmean(expected[0::2]), rel=1e-6)
    assert by["node", "1"].largest == pytest.approx(max(expected[1::2]), rel=1e-6)
    assert by["class", "2"].mean == pytest.approx(statistics.fmean([expected[2], expected[5]]), rel=1e-6)
    assert [key for key in by if key[0] == "class"] == [("class", "0"), ("class", "1"), ("class", "2")]
    named = leakage_summary("f1", victim, "noise:std=0.001", seen, truths, [], class_names=("cat", "<i>dog</i>"))
    assert [one.name for one in named.influence if one.group == "class"] == ["cat", "<i>dog</i>", "2"]
    double = leakage_summary("f1", victim, "noise:std=0.002", seen, truths, [])
    assert double.influence[0].mean == pytest.approx(2 * found.influence[0].mean, rel=1e-6)  # linear in the change


def test_a_bottlenecks_noise_is_a_change_too_and_is_fitted_along():
    victim, seen, truths = problem(build=lambda spec: tiny.mlp(spec, bottleneck=True))
    found = leakage_summary("f1", victim, "precode", seen, truths, [])
    expected = []
    for number, (one, truth) in enumerate(zip(seen, truths, strict=True)):
        noise = draw_noise(victim, 1, generator=torch.Generator().manual_seed(number))
        of = released(victim, truth.labels, noise=noise, parameters=one.parameters)
        expected.append(noise_ranks(of, truth.images).fitted_rmse)
    assert found.unit_rmse == pytest.approx(statistics.median(expected), rel=1e-6)
    assert len(found.influence) == 2 + 3
    assert all(one.mean > 0 for one in found.influence)
    plain, seen, truths = problem()
    assert leakage_summary("f1", plain, "none", seen, truths, []).influence == []


def test_correlation_with_the_smallest_measured_error():
    victim, seen, truths = problem(8)
    alone = [
        leakage_summary("f1", victim, "prune:share=0.5", [one], [truth], [])
        for one, truth in zip(seen, truths, strict=True)
    ]
    influence = [one.influence[0].mean for one in alone]  # pruning draws nothing
    errors = [0.3, 0.1, 0.2, 0.4, 0.25, 0.15, 0.35, 0.05]
    worse = measured(seen, [error + 0.5 for error in errors])
    found = leakage_summary("f1", victim, "prune:share=0.5", seen, truths, [*worse, *measured(seen, errors)])
    assert found.correlation == pytest.approx(spearmanr(influence, errors).statistic)
    low, high = found.correlation_interval
    assert -1 <= low < found.correlation < high <= 1
    assert (low, high) == pytest.approx(spearman_interval(found.correlation, 8))
    few = leakage_summary("f1", victim, "prune:share=0.5", seen[:4], truths[:4], measured(seen, errors))
    assert few.correlation is None
    assert "too-few-to-correlate" in few.reason_codes


def of_some(count, images):
    return because("leakage-of-some", count=count, images=images)


def test_what_is_too_large_or_unknown_is_left_out_with_the_reason(monkeypatch):
    victim, seen, truths = problem()
    blind = leakage_summary("f1", victim, "none", seen, [None] * 6, [])
    assert (blind.jacobian_rank, blind.layers) == (None, [])
    assert blind.reason_codes == ["leakage-needs-truth"]
    assert of_some(4, 6) in leakage_summary("f1", victim, "none", seen, truths, [], most=4).reason
    monkeypatch.setattr(module, "MOST_WORK", 1)
    large = leakage_summary("f1", victim, "none", seen, truths, [])
    assert large.reason == because("leakage-too-large", unknowns=36, numbers=496)


class Foreign(nn.Module):
    """A model that autograd does not differentiate twice."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(36, 4)

    def forward(self, x):
        if x.requires_grad:
            raise RuntimeError("not twice")
        return self.fc(x.flatten(1))


def test_a_model_that_cannot_be_analysed_costs_nothing_else():
    model = Foreign().double()
    _, seen, truths = problem(1)
    victim = Victim(model=model, inputs=SPEC)
    own = {name: value.detach() for name, value in model.named_parameters()}
    observation = seen[0].__class__(**{**seen[0].__dict__, "parameters": own, "update": own})
    found = leakage_summary("f1", victim, "none", [observation], truths, [])
    for what in ("what its gradient says of single images", "the ranks of its layers"):
        assert because("leakage-raised", what=what, kind="RuntimeError", error="not twice") in found.reason


def test_several_images_and_steps_are_said(tmp_path):
    victim, seen, truths = problem(2, learning_rate=0.1)
    assert "one-gradient-for-all" in leakage_summary("f1", victim, "none", seen, truths, []).reason_codes
    both = Truth(images=torch.cat([one.images for one in truths]), labels=torch.tensor([0, 1]))
    assert "each-image-alone" in leakage_summary("f1", victim, "none", seen[:1], [both], []).reason_codes


def test_images_are_taken_evenly_from_all_and_no_more_than_the_work_allows(monkeypatch):
    victim, seen, truths = problem()
    some = leakage_summary("f1", victim, "prune:share=0.5", seen, truths, [], most=2)
    alone = [
        leakage_summary("f1", victim, "prune:share=0.5", [seen[n]], [truths[n]], []).influence[0].mean for n in (0, 3)
    ]
    assert [one.mean for one in some.influence if one.group == "node"] == pytest.approx(alone)  # nodes 0 and 1
    monkeypatch.setattr(module, "MOST_WORK_IN_ALL", 3.5 * module.work(victim))
    assert of_some(3, 6) in leakage_summary("f1", victim, "none", seen, truths, []).reason


def test_an_image_without_a_gradient_is_left_out_and_counted():
    victim, seen, truths = problem(3)
    still = {name: torch.zeros_like(value) for name, value in seen[0].parameters.items()}
    still["3.bias"][0] = 1e4  # certain of class 0, which image 0 has
    dead = replace(seen[0], parameters=still)
    found = leakage_summary("f1", victim, "none", [dead, *seen[1:]], truths, [])
    assert found.jacobian_rank == 36
    assert because("gradient-vanishes", count=1) in found.reason


@pytest.mark.parametrize("leakage", [True, False])
def test_an_audit_has_them_when_they_are_asked_for(tmp_path, leakage):
    taped = tape_federation(tmp_path, rounds=1)
    record = audit_tapes(
        [TapeSource(tape=taped.tape)], out=tmp_path / "a", attacks=["first-layer"], victims=1, leakage=leakage
    )
    assert [one.federation for one in record.leakage] == (["f1"] if leakage else [])
    assert record.settings["leakage"] is leakage
    assert ("--no-leakage" in command(record), "--no-control" in command(record)) == (not leakage, True)
    assert read_record(tmp_path / "a" / "audit.json") == record
    if leakage:
        assert record.leakage[0].jacobian_rank == 64
        assert math.isfinite(record.leakage[0].unit_rmse)
        assert finish_record(record).leakage == record.leakage


@pytest.mark.slow
def test_a_control_gets_indices_only_where_its_model_is_another(tmp_path):
    found = []
    for defence in ("precode:latent=8", "noise:std=0.001"):
        taped = tape_federation(tmp_path / defence[:5], rounds=1, defence=defence)
        record = audit_tapes(
            [TapeSource(tape=taped.tape)],
            out=tmp_path / defence[:5] / "a",
            attacks=["first-layer"],
            victims=1,
            control=True,
            leakage=True,
        )
        assert [one.id for one in record.federations] == ["f1", "f1-control"]
        found.append([one.federation for one in record.leakage])
    assert found == [["f1", "f1-control"], ["f1"]]


def test_the_audit_is_written_before_the_indices_and_goes_on_by_the_other_choice(tmp_path, monkeypatch):
    taped = tape_federation(tmp_path, rounds=1)
    settings = AuditSettings(attacks=("first-layer",), victims=1, leakage=True)
    out, told = tmp_path / "a", []

    def die(*_arguments: object, **_named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("attacker.audit.scoring.leakage_summary.layer_ranks", die)
        with pytest.raises(KeyboardInterrupt):
            audit([TapeSource(tape=taped.tape)], settings, out=out)
    before = read_record(out / "audit.json")
    assert before.results
    assert before.leakage == []
    without = audit([TapeSource(tape=taped.tape)], replace(settings, leakage=False), out=out)
    assert without.results == before.results
    record = audit([TapeSource(tape=taped.tape)], settings, out=out, watch=told.append)
    assert record.results == before.results
    assert record.leakage[0].jacobian_rank == 64
    assert (told[-1].title, told[-1].share) == ("f1: leakage indices", 1.0)
