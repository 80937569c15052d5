"""LoRA hides nothing of as many vectors as its rank: frozen layers' gradients follow from their branches'."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from attacker.analytic.branches.frozen_gradient import frozen_gradient, without_branches
from attacker.analytic.branches.low_rank_branch import low_rank_branches
from attacker.analytic.spans.stacked_layers import linear_runs
from attacker.attacks import Outcome, ThroughBranches, build_attack
from attacker.gradients.trace import trace
from attacker.gradients.uncompared_parameters import settled
from attacker.metrics.similarity import match_batch, psnr
from attacker.reasons import because
from fl_precode import Protocol
from tests.attacker.attacks.test_attacks_raise import check_refused
from tests.attacker.heads import SPEC, digits, frozen_trunk, seen_of
from tests.partly_trained_models import LowRank

UNITS = 96


class Scaled(nn.Module):
    """As PEFT has it: factors by the adapter's name, a scale, dropout before the first."""

    def __init__(self, base, rank, *, drop=0.0, scale=2.0):
        super().__init__()
        self.base_layer, self.scaling = base.requires_grad_(False), scale
        self.lora_dropout = nn.ModuleDict({"default": nn.Dropout(drop) if drop else nn.Identity()})
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, base.out_features, bias=False)})

    def forward(self, x):
        sunk = self.lora_A["default"](self.lora_dropout["default"](x))
        return self.base_layer(x) + self.scaling * self.lora_B["default"](sunk)


def branched(*, rank=8, kind=LowRank, activation=nn.Tanh, **settings):
    """A network of two frozen layers with branches, and a frozen classifier."""
    torch.manual_seed(0)
    one, other = nn.Linear(64, UNITS), nn.Linear(UNITS, 40)
    last = nn.Linear(40, 10).requires_grad_(False)
    layers = kind(one, rank, **settings), activation(), kind(other, rank, **settings), activation(), last
    return nn.Sequential(nn.Flatten(), *layers)


def run(victim, observation, *, attack=None, labels=None):
    attack = ThroughBranches(steps=200, total_variation=1e-5) if attack is None else attack
    granted = None if labels is None else [labels]
    (found,) = attack(victim, [observation], generator=torch.Generator().manual_seed(0), labels=granted)
    return found


def worst(found, x):
    restored, truth = SPEC.denormalise(found.inputs).clamp(0, 1), SPEC.denormalise(x)
    return float(psnr(restored[match_batch(restored, truth)], truth).min())


def true_gradient(model, name, x, y):
    layer = model.get_submodule(name)
    layer.weight.requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y), [layer.weight])
    layer.weight.requires_grad_(False)
    return gradient


@pytest.mark.parametrize(("kind", "base"), [(LowRank, "1.base"), (Scaled, "1.base_layer")])
def test_the_frozen_layers_gradient_follows_from_its_branches_up_to_the_rank(kind, base):
    model = branched(kind=kind)
    for count in (1, 5, 8):
        x, y = digits(count)
        victim, seen = settled(*seen_of(model, x, y))
        branches = low_rank_branches(victim, seen)
        assert [branch.name for branch in branches] == ["1", "3"]
        assert branches[0].scale == pytest.approx(1.0 if kind is LowRank else 2.0)
        found = frozen_gradient(branches[0], seen)
        truth = true_gradient(model, base, x, y)
        assert found.rank == count
        assert float((found.gradient - truth).norm() / truth.norm()) < 1e-9
        assert found.error < 1e-9
    x, y = digits(9)
    victim, seen = settled(*seen_of(model, x, y))
    assert frozen_gradient(low_rank_branches(victim, seen)[0], seen).code == "branch-rank-cut"


def test_a_model_without_frozen_layers_has_no_branches_and_is_not_run_to_find_that():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, UNITS, bias=False), nn.Linear(UNITS, 10, bias=False))
    victim, seen = settled(*seen_of(model, *digits(1)))
    runs = []
    victim.model.register_forward_hook(lambda *_: runs.append(1))
    assert low_rank_branches(victim, seen) == []
    assert not runs


def test_runs_of_layers_are_kept_until_the_model_changes():
    victim, _ = settled(*seen_of(branched(), *digits(1)))
    first = linear_runs(victim, trace(victim))
    assert linear_runs(victim, trace(victim)) is first
    with torch.no_grad():
        victim.model[-1].bias.add_(1.0)
    other = linear_runs(victim, trace(victim))
    assert torch.allclose(other[-1].returned, first[-1].returned + 1)
    assert linear_runs(victim, trace(victim, batch_size=5))[0].received.shape[0] == 5


def test_errors_are_those_of_the_numbers_that_were_sent_and_plain_layers_do_what_branches_did():
    x, y = digits(6, torch.float32)
    model = branched(kind=Scaled)
    victim, seen = settled(*seen_of(model, x, y))
    branches = low_rank_branches(victim, seen)
    found, truth = frozen_gradient(branches[0], seen), true_gradient(model, "1.base_layer", x, y).double()
    apart = float((found.gradient - truth).norm() / truth.norm())
    assert found.error / 6 < apart < 3 * found.error < 1e-3
    plain = without_branches(victim, branches, seen)
    assert torch.allclose(plain.victim.model(x.double()), model(x).double(), atol=1e-5)
    assert sorted(plain.observation.parameters) == ["1.weight", "3.weight"]
    assert sorted(plain.solved) == ["1", "3"]


@pytest.mark.parametrize("kind", [LowRank, Scaled])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU, nn.SiLU])
def test_images_of_a_batch_behind_two_branched_layers(kind, activation):
    x, y = digits(5)
    found = run(*seen_of(branched(kind=kind, activation=activation), x, y))
    assert found.outcome is Outcome.CONVERGED, found.reason
    assert found.method == "activation-span"
    assert found.reason_codes == ("branches-solved",)
    assert worst(found, x) > 80


def test_images_in_single_precision_and_of_one_announced_step():
    for count, rank in ((1, 4), (3, 8)):
        x, y = digits(count, torch.float32)
        found = run(*seen_of(branched(rank=rank), x, y))
        assert found.inputs.dtype == torch.float32
        assert worst(found, x) > 40
    x, y = digits(3)
    one = Protocol(name="fedavg", local_steps=1, learning_rate=0.1)
    assert worst(run(*seen_of(branched(), x, y, protocol=one)), x) > 60


def test_features_behind_a_frozen_trunk():
    x, y = digits(4)
    alone = frozen_trunk(nn.Sequential(LowRank(nn.Linear(288, 10), 6)))
    deep = frozen_trunk(nn.Sequential(LowRank(nn.Linear(288, 80), 6), nn.Tanh(), LowRank(nn.Linear(80, 10), 6)))
    for model, labels in ((alone, y), (deep, None)):
        found = run(*seen_of(model, x, y), labels=labels)
        assert found.method == "feature-inversion"
        assert found.reason_codes == ("branches-solved", "features-found"), found.reason
        assert worst(found, x) > 25


def test_every_setting_is_passed_on():
    x, y = digits(2)
    victim, seen = seen_of(frozen_trunk(nn.Sequential(LowRank(nn.Linear(288, 10), 6))), x, y)
    usual = run(victim, seen, attack=build_attack("through-branches:steps=20"), labels=y)
    assert usual.iterations == 20
    for change in ("total_variation=1", "learning_rate=0.2"):
        other = run(victim, seen, attack=build_attack(f"through-branches:steps=20,{change}"), labels=y)
        assert not torch.equal(other.inputs, usual.inputs), change
    for text in ("steps=0", "learning_rate=0", "total_variation=-1"):
        with pytest.raises(ValueError, match=text.partition("=")[0]):
            build_attack(f"through-branches:{text}")


def at_the_start():
    model = branched()
    for name, value in model.named_parameters():
        if "up" in name:
            nn.init.zeros_(value)
    return model


def test_what_does_not_fit_is_named():
    x, y = digits(5)
    check_refused(run(*seen_of(at_the_start(), x, y)), because("branch-is-zero", name="1.up", rank=8))
    cut = because("branch-rank-cut", name="1.base", rank=4, vectors=5)
    check_refused(run(*seen_of(branched(rank=4), x, y)), cut)
    victim, seen = seen_of(branched(rank=4), x, y)
    check_refused(run(victim, replace(seen, batch_size=None)), "branch-rank-cut")
    check_refused(run(*seen_of(branched(kind=Scaled, drop=0.5), x, y)), "branch-drops")
    check_refused(run(*seen_of(frozen_trunk(), x, y)), "no-branch")
    several = Protocol(name="fedavg", local_steps=3, learning_rate=0.1, batch_size=5)
    check_refused(run(*seen_of(branched(), x, y, protocol=several)), "several-steps")
    lone = nn.Sequential(nn.Flatten(), LowRank(nn.Linear(64, 30), 8), nn.Dropout(0.1), nn.Linear(30, 10))
    lone[3].requires_grad_(False)
    check_refused(run(*seen_of(lone, x, y)), "branches-not-enough")
