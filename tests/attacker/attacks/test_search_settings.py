"""What each setting of the search does to an attack, what contradicts what, and the presets by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from attacker.attacks import ATTACKS, PRESETS, GradientMatching, Outcome, build_attack
from attacker.attacks.gradient_matching.options import OPTIONS
from attacker.attacks.gradient_matching.parts import BNStatistics
from attacker.metrics.similarity import mse
from attacker.reasons import because
from fl_precode.models.input_spec import InputSpec
from tests.attacker import tiny
from tests.attacker.sent_back import client, norm_net

SPEC = tiny.inputs()
PLAIN = GradientMatching().with_options(
    iterations=40,
    learning_rate=0.3,
    total_variation=0.0,
    restarts=4,
    converged_below=0.5,
    signed=True,
)
LINES = PRESETS["idlg"].with_options(iterations=20, restarts=2)


def normalised(spec: InputSpec) -> nn.Module:
    norm = nn.BatchNorm2d(3)
    norm.running_mean.fill_(0.3)
    return nn.Sequential(
        nn.Conv2d(spec.channels, 3, 3, padding=1), norm, nn.Sigmoid(), nn.Flatten(), nn.Linear(108, spec.classes)
    )


def attack(settings: GradientMatching, *, buffers: bool = True, count: int = 1, model=None):
    """The model has BatchNorm layers where the settings look at them."""
    torch.manual_seed(0)
    model = model or (normalised if any(isinstance(one, BNStatistics) for one in settings.priors) else tiny.mlp)
    victim = tiny.victim(model(SPEC), SPEC)
    state = {name: value.clone() for name, value in victim.model.named_buffers()} if buffers else {}
    seen = [tiny.observe(victim, tiny.images(SPEC, 1, seed=index), [index], buffers=state) for index in range(count)]
    return settings(victim, seen, generator=torch.Generator().manual_seed(0))


CHANGES = [
    ({}, {"start": "uniform"}),
    ({"restarts": 1}, {"start": "grey"}),
    ({}, {"start": "patterned-2"}),
    ({}, {"schedule": "constant"}),
    ({}, {"schedule": "linear"}),
    ({}, {"schedule": "cosine"}),
    ({}, {"warmup": 5}),
    ({}, {"sign_softness": 0.01}),
    ({}, {"langevin": 0.1}),
    ({}, {"stop_below": 0.4}),
    ({"iterations": 200}, {"plateau": 3}),
    ({}, {"halving": 2}),
    ({"learning_rate": 1.0, "schedule": "constant"}, {"iterate": "best"}),
    ({}, {"image_norm": 0.1}),
    ({"batch_norm": 0.01, "iterations": 10}, {"batch_norm": 0.1}),
    ({}, {"group_consistency": 0.1}),
    ({"group_consistency": 0.1}, {"group_mean": "registered"}),
]
COVERED_ELSEWHERE = {  # test_attacks.py, test_dlg.py
    "iterations",
    "learning_rate",
    "total_variation",
    "total_variations",  # test_race.py
    "restarts",
    "signed",
    "boxed",
    "converged_below",
    "distance",
    "optimiser",
    "history",
    "labels",
}


@pytest.mark.parametrize(("base", "changed"), CHANGES, ids=str)
def test_every_setting_changes_the_result(base, changed):
    plain = PLAIN.with_options(**base)
    # Four victims: the restart that wins may be the same by chance.
    pairs = list(zip(attack(plain, count=4), attack(plain.with_options(**changed), count=4), strict=True))
    assert all(one.inputs is not None for one, _ in pairs)
    assert not all(torch.equal(one.inputs, other.inputs) and one.iterations == other.iterations for one, other in pairs)


@pytest.mark.parametrize("changed", [{"start": "uniform"}, {"image_norm": 1.0}, {"stop_below": 1e-7}, {"plateau": 3}])
def test_every_setting_changes_l_bfgs_too(changed):
    lines = LINES.with_options(iterations=90)
    (one,), (other,) = attack(lines), attack(lines.with_options(**changed))
    assert not (torch.equal(one.inputs, other.inputs) and one.iterations == other.iterations)


def test_no_search_setting_is_left_out():
    mine = {name for _, changed in CHANGES for name in changed}
    # test_memory.py, test_federated_averaging.py, test_distances.py, test_returned_statistics.py
    foreign = {"memory", "local_training", "layers", "batch_norm_of", "normalise_by"}
    assert OPTIONS.keys() == mine | COVERED_ELSEWHERE | foreign


@pytest.mark.parametrize(
    ("base", "changed", "words"),
    [
        (PLAIN, {"start": "white"}, "normal, uniform, grey, patterned-N"),
        (PLAIN, {"schedule": "exponential"}, "step, constant, linear, cosine"),
        (PLAIN, {"group_mean": "median", "group_consistency": 1.0}, "mean, registered"),
        (PLAIN, {"warmup": -1}, "warmup"),
        (PLAIN, {"warmup": 40}, "warmup to end before the 40"),
        (PLAIN, {"plateau": 1.5}, "plateau"),
        (PLAIN, {"halving": -1}, "halving"),
        (PLAIN, {"halving": 3}, "at least that number, got restarts=4"),
        (PLAIN, {"halving": 2, "iterations": 6}, "needs 7 iterations"),
        (PLAIN, {"langevin": -0.1}, "langevin"),
        (PLAIN, {"langevin": float("nan")}, "langevin"),
        (PLAIN, {"sign_softness": float("inf")}, "sign_softness"),
        (PLAIN, {"sign_softness": 0.1, "signed": False}, "set signed to True"),
        (PLAIN, {"stop_below": -1.0}, "stop_below"),
        (PLAIN, {"stop_below": 0.6}, "at most converged_below=0.5"),
        (PLAIN, {"image_norm": -1.0}, "image_norm"),
        (PLAIN, {"batch_norm": float("inf")}, "batch_norm"),
        (PLAIN, {"group_consistency": -1.0}, "group_consistency"),
        (PLAIN, {"group_consistency": 1.0, "restarts": 1}, "restarts to 2 or more"),
        (PLAIN, {"group_consistency": 1.0, "plateau": 9}, "set one of them to 0"),
        (PLAIN, {"group_mean": "registered"}, "set group_consistency above 0"),
        (PLAIN, {"start": "grey"}, "set restarts to 1"),
        (LINES, {"schedule": "cosine"}, "set schedule to constant"),
        (LINES, {"warmup": 2}, "set warmup to 0"),
        (LINES, {"iterate": "best"}, "set iterate to last"),
        (PLAIN, {"iterate": "first"}, "iterate"),
        (LINES, {"langevin": 0.1}, "set langevin to 0"),
        (LINES, {"halving": 1}, "set halving to 0"),
        (LINES, {"batch_norm": 1.0}, "set batch_norm to 0"),
        (LINES, {"group_consistency": 1.0}, "set group_consistency to 0"),
    ],
    ids=lambda one: one.name if isinstance(one, GradientMatching) else str(one),
)
def test_contradictions_say_what_to_do(base, changed, words):
    with pytest.raises(ValueError, match=words):
        base.with_options(**changed)


def test_batch_norm_needs_layers_and_their_statistics():
    settings = PLAIN.with_options(batch_norm=0.1)
    (found,) = attack(settings, model=tiny.mlp)
    assert found.outcome is Outcome.NOT_APPLICABLE
    assert found.reason == because("prior-has-no-reference", weight=0.1, why=because("statistics-missing"))
    (found,) = attack(settings, buffers=False)
    assert found.outcome is Outcome.NOT_APPLICABLE
    assert because("statistics-missing.not-sent", names=["1"]) in found.reason


def test_iterations_are_those_of_each_observation():
    found = attack(PLAIN.with_options(iterations=400, plateau=5, restarts=2), count=3)
    assert all(1 <= one.iterations < 400 for one in found)
    assert len({one.iterations for one in found}) > 1
    assert [one.labels.tolist() for one in found] == [[0], [1], [2]]


def test_the_last_iterate_is_the_one_that_one_more_step_starts_from():
    """A search of n steps with a constant rate ends where one of more steps passes by, whatever was better before."""
    settings = PLAIN.with_options(restarts=1, learning_rate=1.0, schedule="constant", iterate="last")
    losses = [attack(settings.with_options(iterations=n))[0].matching_loss for n in range(1, 12)]
    best = [attack(settings.with_options(iterations=n, iterate="best"))[0].matching_loss for n in range(1, 12)]
    assert losses != sorted(losses, reverse=True), "it goes up and down"
    start = best[0] if best[0] < losses[0] else float("inf")
    assert best == [min(start, *losses[: n + 1]) for n in range(11)]


def test_halving_gives_the_restart_that_all_of_them_would_have_given():
    whole, halved = (
        attack(PLAIN.with_options(iterations=150, restarts=8, halving=n), model=tiny.mlp)[0] for n in (0, 3)
    )
    truth = SPEC.denormalise(tiny.images(SPEC, 1))
    assert halved.iterations == 150
    for one in (whole, halved):
        assert float(mse(SPEC.denormalise(one.inputs), truth)) < 1e-3


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_built_by_name_and_run(name):
    preset = build_attack(f"inverting-gradients:preset={name}")
    assert preset == PRESETS[name]
    assert preset.name in ATTACKS
    short = PRESETS[name].with_options(iterations=60)
    if any(isinstance(prior, BNStatistics) and prior.of == "returned" for prior in short.priors):
        victim = norm_net()
        (found,) = short(victim, [client(victim)[2]], generator=torch.Generator().manual_seed(0))
    else:
        (found,) = attack(short)
    assert found.inputs is not None, found.reason
    assert found.matching_loss is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("settings", [PLAIN.with_options(batch_norm=0.01, iterations=30), LINES], ids=lambda s: s.name)
def test_half_precision_is_attacked_in_single(dtype, settings):
    torch.manual_seed(0)
    double = tiny.victim(normalised(SPEC), SPEC)
    state = {name: value.clone() for name, value in double.model.named_buffers()}
    seen = tiny.observe(double, tiny.images(SPEC, 1), [2], buffers=state)

    def half(values):
        return {name: v.to(dtype) if v.is_floating_point() else v for name, v in values.items()}

    sent = replace(seen, parameters=half(seen.parameters), buffers=half(seen.buffers), update=half(seen.update))
    victim = tiny.victim(normalised(SPEC), SPEC, dtype=dtype)
    (found,) = settings(victim, [sent], generator=torch.Generator().manual_seed(0))
    assert found.inputs is not None
    assert found.inputs.dtype == torch.float32
    assert found.labels.tolist() == [2]
    assert next(victim.model.parameters()).dtype == dtype, "the caller's model stays as it is"
    assert 0 < found.matching_loss < 0.1
