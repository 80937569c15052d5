"""Attacks that use the returned running statistics: as a prior, as normalisation, and alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attacker.attacks import Outcome, StatisticsOnly, build_attack
from attacker.attacks.selection import attacks_for
from attacker.audit.planning.readings import _batch_statistics
from attacker.audit.threat_model import Knowledge
from attacker.objectives.returned_statistics import BatchTarget, ReturnedStatistics, returned_prior
from attacker.reasons import because
from fl_precode import Observation, Victim
from tests.attacker.sent_back import client, norm_net

NOTHING = {
    "inverting-gradients:batch_norm=1,batch_norm_of=returned": "statistics-needed",
    "inverting-gradients:normalise_by=returned": "statistics-needed",
    "statistics-matching": "statistics-needed",
    "statistics-only": "statistics-not-returned",
}


def found(spec: str, victim: Victim, seen: Observation, labels: Tensor):
    (result,) = build_attack(spec)(victim, [seen], generator=torch.Generator().manual_seed(0), labels=[labels])
    return result


def test_the_true_batch_has_the_statistics_and_others_have_not():
    victim = norm_net()
    x, _, seen, _ = client(victim)
    prior = returned_prior(victim, [seen, seen])
    truth, other = x[None], (x + 0.1)[None]
    at_truth = prior(torch.stack([truth, other]))
    assert at_truth.shape == (2, 1)
    assert at_truth[0] < 1e-24
    assert at_truth[1] > 1e-3
    assert prior.keep([1], [[0]])(other[None]) == at_truth[1]


def test_after_several_steps_the_mean_over_the_batches_is_compared():
    victim = norm_net()
    x, _, seen, _ = client(victim, images=4, batch=2, epochs=3, rate=1e-9)
    prior = returned_prior(victim, [seen])
    swapped = x.roll(2, dims=0)  # the batches in another order have other weights
    assert prior(x[None, None]) < 1e-12
    assert prior(swapped[None, None]) > 1e-6
    assert isinstance(prior, ReturnedStatistics)


@pytest.mark.parametrize("change", [{"batch_size": 3}, {"batch_size": None}], ids=["uneven", "unknown"])
def test_batches_of_unequal_or_unknown_size_are_refused(change):
    victim = norm_net()
    _, _, seen, _ = client(victim, images=4, batch=2)
    other = replace(seen, protocol=replace(seen.protocol, **change))
    reason = BatchTarget.of(victim, other)
    assert reason == because("statistics-mixed.uneven", passes=2)


@pytest.mark.parametrize("spec", NOTHING)
def test_attacks_refuse_updates_from_which_nothing_was_returned(spec):
    victim = norm_net()
    _, y, seen, _ = client(victim)
    assert build_attack(spec).why_not(victim, seen) is None
    refused = found(spec, victim, replace(seen, returned={}), y)
    assert refused.outcome is Outcome.NOT_APPLICABLE
    assert refused.reason_codes[0] == NOTHING[spec]
    assert "statistics-not-returned" in refused.reason_codes


def test_replays_refuse_several_batches_and_the_prior_takes_them():
    victim = norm_net()
    _, _, seen, _ = client(victim, images=4, batch=2)
    assert "statistics-mixed" in build_attack("inverting-gradients:normalise_by=returned").why_not(victim, seen).codes
    assert build_attack("statistics-matching:iterations=3").why_not(victim, seen) is None


def test_every_setting_changes_the_result():
    victim = norm_net()
    _, y, seen, _ = client(victim)
    options = ("", ",batch_norm=1", ",batch_norm=1,batch_norm_of=returned", ",normalise_by=returned")
    searches = [found(f"inverting-gradients:iterations=8{more}", victim, seen, y) for more in options]
    options = ("", ",learning_rate=0.2", ",total_variation=1", ",signed=true", ",converged_below=10")
    searches += [found(f"statistics-only:iterations=8{more}", victim, seen, y) for more in options]
    results = [(search.inputs.sum().item(), search.outcome) for search in searches]
    assert len(set(results)) == len(results)
    starts = [found(f"statistics-only:iterations=8,restarts={count}", victim, seen, y).starts for count in (1, 4)]
    assert starts == [1, 4]


def test_statistics_alone_are_fitted_whatever_was_done_to_the_gradient():
    victim = norm_net()
    _, y, seen, _ = client(victim, images=1, batch=1)
    pruned = replace(seen, update={name: torch.zeros_like(value) for name, value in seen.update.items()})
    pruned.update["0.bias"][0] = 1.0
    attack = StatisticsOnly(iterations=400, total_variation=0.0)
    both = attack(victim, [seen, pruned], generator=[torch.Generator().manual_seed(0) for _ in range(2)])
    torch.testing.assert_close(both[0].inputs, both[1].inputs)
    assert both[0].reason_codes[0] == "statistics-fitted"
    prior = returned_prior(victim, [seen])
    assert prior(both[0].inputs[None, None]) < 1e-3
    assert both[0].matching_loss is None


@pytest.mark.parametrize("setting", ["batch_norm_of=returned", "batch_norm=1,batch_norm_of=sent", "normalise_by=sent"])
def test_settings_that_make_no_sense_are_refused(setting):
    with pytest.raises(ValueError, match="batch_norm_of|normalise_by"):
        build_attack(f"inverting-gradients:{setting}")


def test_they_are_chosen_where_statistics_were_returned_and_the_reading_counts_the_layers():
    victim = norm_net()
    _, _, seen, _ = client(victim)
    _, _, several, _ = client(victim, images=4, batch=2)
    for update, layers, chosen in ((seen, 2, True), (several, 0, True), (replace(seen, returned={}), 0, False)):
        choices = {choice.spec: choice.applies for choice in attacks_for(victim, observation=update, defence="none")}
        assert (choices["statistics-matching"], choices["statistics-only"]) == (chosen, chosen)
        assert _batch_statistics(victim, update) == layers


def test_what_a_server_may_not_know_is_gone():
    victim = norm_net()
    _, _, seen, _ = client(victim)
    assert Knowledge().of(seen, "none").returned
    assert not Knowledge.usual(withhold=["buffers"]).of(seen, "none").returned
