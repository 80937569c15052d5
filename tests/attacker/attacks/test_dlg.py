"""DLG and iDLG as settings: exact images and labels on smooth models, each image with its own label, clear refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from attacker.attacks import PRESETS, GradientMatching, Outcome, build_attack
from attacker.attacks.gradient_matching.parts import Cosine
from attacker.metrics.similarity import match_batch, mse
from attacker.objectives.joint_labels import SoftlyLabelled
from fl_precode import Protocol
from tests.attacker import tiny

SPEC = tiny.inputs()
IDLG = PRESETS["idlg"].with_options(iterations=300)
DLG = PRESETS["dlg"].with_options(iterations=300)


def victim_of(build=tiny.mlp, **options):
    torch.manual_seed(0)
    model = build(SPEC, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.5, 0.5)
    return tiny.victim(model, SPEC)


def attack(settings, victim, seen, labels=None, seed=0):
    return settings(victim, seen, generator=torch.Generator().manual_seed(seed), labels=labels)


def layer_norm(spec):
    return nn.Sequential(tiny.mlp(spec), nn.LayerNorm(spec.classes))


@pytest.mark.parametrize("settings", [IDLG, DLG], ids=lambda one: one.name)
@pytest.mark.parametrize("build", [tiny.mlp, layer_norm], ids=lambda one: one.__name__)
def test_images_and_labels_are_exact(settings, build):
    victim = victim_of(build)
    truths = [tiny.images(SPEC, 1, seed=index) for index in range(2)]
    seen = [tiny.observe(victim, x, [index + 1]) for index, x in enumerate(truths)]
    granted = None if build is tiny.mlp or settings is DLG else [torch.tensor([1]), torch.tensor([2])]
    restarts = 3 if build is tiny.mlp else 1  # products of LayerNorm are formed one candidate after another
    for index, one in enumerate(attack(settings.with_options(restarts=restarts), victim, seen, granted)):
        assert one.outcome is Outcome.CONVERGED
        assert one.labels.tolist() == [index + 1]
        assert one.inputs.shape == truths[index].shape
        assert float(mse(SPEC.denormalise(one.inputs), SPEC.denormalise(truths[index]))) < 1e-5


def test_weights_of_one_announced_step_fit_and_an_unknown_scale_does_not():
    victim = victim_of()
    x = tiny.images(SPEC, 1)
    step = tiny.observe(victim, x, [2], learning_rate=0.05)
    (found,) = attack(IDLG, victim, [step])
    assert float(mse(SPEC.denormalise(found.inputs), SPEC.denormalise(x))) < 1e-5
    (refused,) = attack(IDLG, victim, [replace(step, protocol=Protocol())])
    assert refused.outcome is Outcome.NOT_APPLICABLE
    assert refused.reason_codes == ("scale-needed", "learning-rate-unknown")


def test_images_of_a_batch_have_labels_of_their_own():
    victim = victim_of()
    x = tiny.images(SPEC, 2)
    observation = tiny.observe(victim, x, [0, 3])
    (found,) = attack(DLG.with_options(iterations=600, restarts=4), victim, [observation])
    assert sorted(found.labels.tolist()) == [0, 3]
    assert found.inputs.shape == x.shape
    order = match_batch(SPEC.denormalise(found.inputs), SPEC.denormalise(x))
    assert found.labels[order].tolist() == [0, 3]


def test_granted_labels_are_kept_beside_those_that_are_optimised():
    victim = victim_of()
    seen = [tiny.observe(victim, tiny.images(SPEC, 1, seed=index), [index]) for index in range(3)]
    found = attack(DLG.with_options(iterations=100), victim, seen, [None, torch.tensor([2]), None])
    assert [one.labels.tolist() for one in found] == [[0], [2], [2]]  # the second was granted a wrong one


def test_soft_labels_are_rows_of_the_table_and_hard_ones_are_classes():
    plain = victim_of()
    soft = SoftlyLabelled(model=plain.model, inputs=SPEC)
    x = tiny.images(SPEC, 3)
    table = torch.randn(5, SPEC.classes, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).softmax(1)
    rows = torch.tensor([4, 0, 2])
    with soft.probabilities(table):
        value = soft.training_loss(x, rows)
    wanted = -(table[rows] * F.log_softmax(plain.model(x), dim=1)).sum(1).mean()
    torch.testing.assert_close(value, wanted)
    labels = torch.tensor([3, 0, 2])
    torch.testing.assert_close(soft.training_loss(x, labels), plain.training_loss(x, labels))


def test_a_bottleneck_keeps_one_draw_of_noise_while_lines_are_searched():
    victim = victim_of(bottleneck=True)
    observation = tiny.observe(victim, tiny.images(SPEC, 1), [1])
    found = [attack(IDLG.with_options(iterations=40), victim, [observation], seed=seed)[0] for seed in (0, 0, 1)]
    assert torch.equal(found[0].inputs, found[1].inputs)
    assert not torch.equal(found[0].inputs, found[2].inputs)


def test_weights_that_are_not_finite_diverge():
    victim = victim_of()
    good = tiny.observe(victim, tiny.images(SPEC, 1), [1])
    broken = {**good.parameters, "1.bias": torch.full_like(good.parameters["1.bias"], float("nan"))}
    (found,) = attack(IDLG, victim, [replace(good, parameters=broken)])
    assert found.outcome is Outcome.DIVERGED
    assert found.inputs is None


@pytest.mark.parametrize(
    "changed",
    [{"history": 2}, {"learning_rate": 0.3}, {"iterations": 21}, {"labels": "joint"}, {"restarts": 4}],
    ids=str,
)
def test_every_setting_changes_the_result(changed):
    victim = victim_of()
    observation = tiny.observe(victim, tiny.images(SPEC, 1), [1])
    plain = IDLG.with_options(iterations=20)
    one, other = (attack(s, victim, [observation], seed=2)[0] for s in (plain, plain.with_options(**changed)))
    assert not torch.equal(one.inputs, other.inputs)


def test_adam_takes_the_squared_distance_too():
    victim = victim_of()
    observation = tiny.observe(victim, tiny.images(SPEC, 1), [1])
    one, other = (
        attack(GradientMatching().with_options(iterations=20, distance=name, signed=False), victim, [observation])[0]
        for name in ("cosine", "l2")
    )
    assert not torch.equal(one.inputs, other.inputs)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"signed": True}, "l-bfgs.*does not fit signed"),
        ({"boxed": True}, "l-bfgs.*does not fit boxed"),
        ({"total_variation": 1e-4}, "set total_variation to 0"),
        ({"history": 0}, "history of 1 or more"),
        ({"history": -1}, "history"),
        ({"optimiser": "adam"}, "expected history=0, got 100"),
        ({"optimiser": "adam", "history": 0, "labels": "joint"}, "needs optimiser='l-bfgs'"),
        ({"optimiser": "sgd"}, "adam, l-bfgs"),
        ({"distance": "l1"}, "set distance to cosine or l2"),
        ({"distance": "l3"}, "cosine, l2, l1"),
        ({"distance": "cosine-kept", "converged_below": 3.0}, "cosine distance"),
        ({"layers": "conv*||fc*"}, "separated by"),
        ({"layers": "!"}, "separated by"),
        ({"labels": "shared"}, "recovered, joint"),
        ({"converged_below": float("inf")}, "converged_below"),
        ({"distance": "cosine", "converged_below": 3.0}, "converged_below"),
    ],
    ids=str,
)
def test_contradictory_settings_are_refused(changed, words):
    with pytest.raises(ValueError, match=words):
        IDLG.with_options(**changed)


def test_specs_name_both_and_what_defines_them_cannot_be_changed():
    assert build_attack("dlg") == PRESETS["dlg"]
    assert build_attack("idlg:iterations=50,history=10") == PRESETS["idlg"].with_options(iterations=50, history=10)
    assert build_attack("inverting-gradients:preset=idlg,distance=cosine").distance == Cosine(converged_below=1e-6)
    with pytest.raises(ValueError, match="no option 'signed'"):
        build_attack("dlg:signed=true")
    with pytest.raises(ValueError, match=r"history=0.*DLG uses 100"):
        build_attack("idlg:history=0")
