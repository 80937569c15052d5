"""Two classes, pruning, signs, one logit, no bias: labels are read another way, or all of them are tried."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from attacker.attacks import GradientMatching
from attacker.attacks.base import Outcome
from attacker.attacks.randomness import derived
from attacker.attacks.registry import build_attack
from attacker.labels import best_labels, recover_labels
from fl_precode.defences.registry import gradient_defence
from tests.attacker import tiny


def problem(labels, *, classes=2, unit=nn.ReLU, bias=True, defence="none", outputs=None, seed=0):
    spec = replace(tiny.inputs(), classes=classes)
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(spec.channels * spec.height * spec.width, 24), unit(),
        nn.Linear(24, 16), unit(),
        nn.Linear(16, outputs or classes, bias=bias),
    )  # fmt: skip
    victim = tiny.victim(model, spec)
    observation = tiny.observe(victim, tiny.images(spec, len(labels), seed=seed), labels)
    chain = gradient_defence(defence)
    if defence != "none":
        update = chain(dict(observation.update), generator=torch.Generator().manual_seed(0))
        observation = replace(observation, update=update, protocol=replace(observation.protocol, defence=defence))
    return victim, observation


def recovered(*problem_of, **options):
    found, why = best_labels(*problem(*problem_of, **options), generator=torch.Generator().manual_seed(0))
    return (None if found is None else found.tolist()), why


@pytest.mark.parametrize("label", [0, 1, 3])
@pytest.mark.parametrize("unit", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize(("bias", "defence"), [(False, "none"), (True, "prune:share=0.9"), (False, "sign")])
def test_the_row_that_points_against_the_others_is_the_label(label, unit, bias, defence):
    for seed in range(3):
        asked = {"classes": 4, "unit": unit, "bias": bias, "defence": defence, "seed": seed}
        assert recovered([label], **asked) == ([label], "rows")


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("unit", [nn.ReLU, nn.Sigmoid])
def test_of_two_classes_and_a_pruned_bias_the_row_sums_tell(label, unit):
    assert recovered([label], unit=unit, defence="prune:share=0.9")[0] == [label]
    assert recovered([label], unit=unit, bias=False)[0] == [label]
    assert recovered([label], unit=unit, outputs=1, defence="prune:share=0.9")[0] == [label]


def test_two_opposite_rows_of_features_of_both_signs_tell_nothing():
    found, why = recovered([1], unit=nn.Tanh, bias=False)
    assert found is None
    assert "negative as well as positive" in why
    victim, observation = problem([1], unit=nn.Tanh, bias=False)
    assert recover_labels("rows", victim, observation, generator=torch.Generator()) is None
    with pytest.raises(ValueError, match="one image"):
        recover_labels("rows", *problem([1, 0]), generator=torch.Generator())


TRIALS = [
    ([0], {"unit": nn.Tanh, "bias": False}),
    ([1], {"unit": nn.Tanh, "bias": False}),
    ([1], {"defence": "prune:share=0.99"}),
    ([0, 1, 1], {"defence": "prune:share=0.5"}),  # of more than that too little is left to tell 2 of 3 every time
    ([1, 1], {"outputs": 1, "defence": "sign"}),
    ([0, 0, 0], {"unit": nn.Tanh, "bias": False}),
]


@pytest.mark.parametrize(("labels", "asked"), TRIALS, ids=str)
def test_where_no_label_shows_all_are_tried(labels, asked):
    victim, observation = problem(labels, **asked)
    attack = GradientMatching().with_options(iterations=60)
    (found,) = attack(victim, [observation], generator=torch.Generator().manual_seed(0))
    assert sorted(found.labels.tolist()) == labels
    assert found.inputs is not None
    assert "labels-tried" in found.reason_codes
    # The search, and one heat for each number of the second class.
    assert found.iterations == 60 * (1 + len(labels) + 1)


def test_trials_of_one_update_leave_the_draws_of_the_others_alone():
    victim, shown = problem([1], unit=nn.Tanh, bias=True)
    silent = replace(
        shown, update={k: torch.zeros_like(v) if k.startswith("5") else v for k, v in shown.update.items()}
    )
    attack = build_attack("inverting-gradients:iterations=20,total_variations=1e-6|1e-2")
    together = attack(victim, [silent, shown], generator=torch.Generator().manual_seed(1))
    (alone,) = attack(victim, [shown], generator=[derived(torch.Generator().manual_seed(1), 2)[1]])
    assert torch.allclose(alone.inputs, together[1].inputs, atol=1e-2)
    assert "labels-tried" in together[0].reason_codes


def test_labels_that_were_granted_are_not_tried():
    victim, observation = problem([1], defence="prune:share=0.99")
    (found,) = GradientMatching().with_options(iterations=5)(
        victim, [observation], generator=torch.Generator(), labels=[torch.tensor([0])]
    )
    assert found.labels.tolist() == [0]
    assert found.iterations == 5
    assert found.outcome is not Outcome.NOT_APPLICABLE
