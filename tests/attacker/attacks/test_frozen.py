"""Parameters that did not move are constants: they are run forward, and give no equations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from attacker.attacks import Outcome, build_attack
from attacker.attacks.base import check_observation
from attacker.audit.inputs.defence_check import doubts
from attacker.audit.inputs.update_facts import update_facts
from attacker.gradients.trace import trace
from attacker.gradients.uncompared_parameters import constants_of, only_moving, with_constants
from attacker.labels import best_labels, recover_labels
from attacker.reasons import because
from tests.attacker import tiny

SPEC = tiny.inputs(channels=2, side=6)
SEARCHES = ("inverting-gradients:iterations=60", "dlg:iterations=60", "idlg:iterations=60")


def convolutions(*, head_bias: bool = True) -> nn.Sequential:
    """Two convolutions of more equations than unknowns, and a classifier."""
    return nn.Sequential(
        nn.Conv2d(2, 12, 3), nn.Tanh(), nn.Conv2d(12, 28, 2), nn.Sigmoid(), nn.Flatten(),
        nn.Linear(252, 4, bias=head_bias),
    )  # fmt: skip


def stack() -> nn.Sequential:
    """Case 18: three Linear layers of which the first is square."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(72, 72), nn.Sigmoid(), nn.Linear(72, 20), nn.Sigmoid(), nn.Linear(20, 4)
    )


def freeze(observation, *names):
    """The observation as the reader makes it when these parameters did not move or were not sent."""
    parameters, update = dict(observation.parameters), dict(observation.update)
    for name in names:
        del update[name]
    values = {name: parameters.pop(name) for name in names}
    return replace(
        observation,
        parameters=parameters,
        update=update,
        buffers={**observation.buffers, **values},
        frozen=observation.frozen | frozenset(names),
    )


def problem(model, *names, label=2, seed=3, **changes):
    torch.manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.reset_parameters()
    victim = tiny.victim(model, SPEC)
    x = tiny.images(SPEC, 1, seed=seed)
    return victim, freeze(tiny.observe(victim, x, [label], **changes), *names), x


def run(attack, victim, *seen):
    return build_attack(attack)(victim, list(seen), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (stack, ("1.weight", "1.bias")),
        (stack, ("1.weight",)),
        (stack, ("1.bias",)),
        (stack, ("1.weight", "1.bias", "3.weight", "5.weight", "5.bias")),
        (convolutions, ("0.weight", "0.bias")),
        (convolutions, ("0.weight", "2.bias")),
        (convolutions, ("0.weight", "0.bias", "2.weight", "2.bias")),
        (convolutions, ("5.bias", "0.bias", "2.bias")),
        (lambda: convolutions(head_bias=False), ("0.weight", "2.weight")),
    ],
)
@pytest.mark.parametrize(("attack", "rate"), [("layerwise-inversion", None), ("hybrid", 0.1)])
def test_the_image_is_exact_where_the_layers_that_moved_determine_it(attack, model, names, rate):
    victim, seen, x = problem(model(), *names, learning_rate=rate)
    (found,) = run(attack, victim, seen)
    if names == ("1.weight", "1.bias", "3.weight", "5.weight", "5.bias"):
        assert found.outcome is Outcome.NOT_APPLICABLE  # biases alone tell no input
        assert found.reason_codes == ("no-linear-layer",)
        return
    assert found.outcome is Outcome.CONVERGED, found.reason
    torch.testing.assert_close(found.inputs, x, rtol=0, atol=1e-6)
    frozen_head = {"5.weight", "5.bias"} <= set(names)
    assert (found.labels is None) if frozen_head else found.labels.tolist() == [2]


def test_least_squares_refines_from_what_moved():
    victim, seen, x = problem(convolutions(), "0.weight", "2.bias")
    (found,) = run("then-refine:iterations=0", victim, seen)
    torch.testing.assert_close(found.inputs, x, rtol=0, atol=1e-6)


def test_a_zero_update_of_a_whole_layer_is_no_equation_either():
    """As when the reader could not tell: the gradient of a frozen layer was sent as zeros."""
    victim, seen, x = problem(convolutions())
    silent = {"0.weight", "0.bias"}
    zeros = {name: torch.zeros_like(value) if name in silent else value for name, value in seen.update.items()}
    (found,) = run("layerwise-inversion", victim, replace(seen, update=zeros))
    torch.testing.assert_close(found.inputs, x, rtol=0, atol=1e-6)


def test_a_frozen_layer_that_determines_too_little_is_said_to():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(32, 4))
    victim, seen, _ = problem(model, "0.weight", "0.bias")
    (found,) = run("layerwise-inversion", victim, seen)
    assert found.outcome is Outcome.ITERATION_LIMIT
    assert because("rank-deficient", name="0", rank=32, unknowns=72) in found.reason


@pytest.mark.parametrize("attack", SEARCHES)
@pytest.mark.parametrize(
    "names",
    [
        ("1.weight", "1.bias"),
        ("1.weight", "3.weight", "5.weight"),
        ("1.bias", "3.bias"),
        ("1.weight", "1.bias", "3.bias"),
    ],
)
def test_searches_compare_what_moved_only(attack, names):
    victim, seen, x = problem(stack(), *names)
    (found,) = run(attack, victim, seen)
    assert found.inputs is not None, found.reason
    assert 0 <= found.matching_loss < found.starting_loss
    exact, _ = (run(attack, victim, seen), x)
    torch.testing.assert_close(exact[0].inputs, found.inputs)


@pytest.mark.parametrize("build", [stack, convolutions])
def test_the_true_image_has_distance_zero_under_every_engine(build):
    """Factored, dense and looped products at the truth, of two victims with weights of their own."""
    from attacker.gradients.double_backward import LoopProducts
    from attacker.gradients.ghost.ghost import FactoredProducts, why_not_factored
    from attacker.gradients.one_step import DenseProducts
    from attacker.gradients.replay import Replay

    names = ("1.weight", "1.bias") if build is stack else ("0.weight",)
    victim, one, x = problem(build(), *names)
    changed = with_constants(victim, one.frozen)
    trained = trace(changed)
    assert why_not_factored(changed.model, trained) is None
    replay = Replay(changed, one.parameters, one.buffers)
    candidates = x.reshape(1, 1, *x.shape)
    for products in (
        FactoredProducts(replay, [one.update], trained, batch_size=1),
        DenseProducts(replay, [one.update]),
        LoopProducts(replay, [one.update]),
    ):
        found = products(candidates, torch.tensor([2]).reshape(1, 1, 1))
        cosine = found.inner / (found.square * found.target).sqrt()
        torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=0, atol=1e-12)


def test_victims_with_other_frozen_layers_are_attacked_in_one_call():
    victim, one, x = problem(stack(), "1.weight", "1.bias")
    other = freeze(tiny.observe(victim, x, [1]), "5.weight", "5.bias")
    both = run("layerwise-inversion", victim, one, other, tiny.observe(victim, x, [3]))
    for found in both:
        torch.testing.assert_close(found.inputs, x, rtol=0, atol=1e-6)
    assert [None if one.labels is None else one.labels.tolist() for one in both] == [[2], None, [3]]


@pytest.mark.parametrize("names", [("5.weight",), ("5.bias",), ("1.weight", "1.bias", "3.weight", "3.bias")])
@pytest.mark.parametrize("images", [1, 2])
def test_labels_come_from_what_moved_of_the_classifier(names, images):
    victim, _, _ = problem(stack())
    labels = [2, 1][:images]
    seen = freeze(tiny.observe(victim, tiny.images(SPEC, images), labels), *names)
    found, method = best_labels(victim, seen, generator=torch.Generator().manual_seed(0))
    assert found is not None, method
    assert sorted(found.tolist()) == sorted(labels)


def test_a_classifier_that_did_not_move_says_why_there_are_no_labels():
    victim, seen, _ = problem(stack(), "5.weight", "5.bias")
    found, reason = best_labels(victim, seen, generator=torch.Generator().manual_seed(0))
    assert found is None
    assert "the classifier '5' did not move" in reason
    (searched,) = run("inverting-gradients:iterations=5", victim, seen)
    assert searched.inputs is not None  # one image of four classes: each label is tried
    (many,) = run("inverting-gradients:iterations=5", victim, replace(seen, batch_size=12))
    assert many.inputs is None  # there are too many labels to try
    assert many.reason == because("labels-unknown", why=reason)
    (joint,) = run("dlg:iterations=40", victim, seen)  # it optimises the labels with the images
    assert joint.inputs is not None
    only_bias = freeze(tiny.observe(victim, tiny.images(SPEC, 1), [2]), "5.weight")
    with pytest.raises(ValueError, match="did not move, its bias only"):
        recover_labels("yin", victim, only_bias, generator=torch.Generator())


def test_the_first_layer_says_that_it_did_not_move():
    victim, seen, _ = problem(stack(), "1.weight", "1.bias")
    for attack in ("first-layer", "spear"):
        why = build_attack(attack).why_not(victim, seen)
        assert why == because("first-layer-did-not-move", what="weight and the bias", name="1")


class LowRankAdapted(nn.Module):
    """A frozen model with a trained low-rank branch, as LoRA has it."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.head = nn.Linear(72, 24), nn.Linear(24, 4)
        self.down, self.up = nn.Linear(72, 6, bias=False), nn.Linear(6, 24, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(1)
        return self.head(torch.sigmoid(self.base(flat) + self.up(self.down(flat))))


def test_adapters_on_a_frozen_model_are_searched():
    victim, seen, _ = problem(LowRankAdapted(), "base.weight", "base.bias")
    (found,) = run("inverting-gradients:iterations=200", victim, seen)
    assert found.matching_loss < 0.2 * found.starting_loss
    assert run("layerwise-inversion", victim, seen)[0].outcome is Outcome.NOT_APPLICABLE


def test_a_tied_weight_is_one_constant():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(72, 8), nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
            self.c.weight = self.b.weight
            self.out = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(torch.sigmoid(self.c(torch.sigmoid(self.b(torch.sigmoid(self.a(x.flatten(1))))))))

    victim, seen, x = problem(Tied(), "b.weight", "b.bias")
    changed = with_constants(victim, seen.frozen)
    assert constants_of(changed.model.c) == {"weight"}
    assert changed.model.c.weight is changed.model.b.weight
    (found,) = run("layerwise-inversion", victim, seen)
    torch.testing.assert_close(found.inputs, x, rtol=0, atol=1e-8)
    (searched,) = run("inverting-gradients:iterations=30", victim, seen)
    assert searched.matching_loss < searched.starting_loss


def test_batch_normalisation_with_frozen_scale_and_shift():
    model = nn.Sequential(nn.Conv2d(2, 12, 3), nn.BatchNorm2d(12), nn.Tanh(), nn.Flatten(), nn.Linear(192, 4))
    with torch.no_grad():
        model[1].running_mean.uniform_(-0.1, 0.1)
        model[1].weight.uniform_(0.5, 2)
    victim, seen, x = problem(model)
    buffers = {name: value.detach().clone() for name, value in victim.model.named_buffers()}
    seen = freeze(replace(seen, buffers=buffers), "1.weight", "1.bias", "0.bias")
    (found,) = run("layerwise-inversion", victim, seen)
    torch.testing.assert_close(found.inputs, x, rtol=0, atol=1e-6)
    by_batch = replace(seen, protocol=replace(seen.protocol, batch_norm="batch"))
    (searched,) = run("inverting-gradients:iterations=20", victim, by_batch)
    assert searched.inputs is not None, searched.reason


def test_what_an_observation_lists_is_compared_with_the_model():
    victim, seen, _ = problem(stack(), "1.weight")
    assert check_observation(victim, seen) is None
    assert check_observation(with_constants(victim, seen.frozen), seen) is None
    without = {name: value for name, value in seen.buffers.items() if name != "1.weight"}
    misfit = check_observation(victim, replace(seen, buffers=without, frozen=frozenset()))
    assert misfit == because("another-model", names=["1.weight"])
    other = replace(seen, buffers={**seen.buffers, "1.weight": torch.zeros(2, 2)})
    assert check_observation(victim, other).code == "another-model"
    nothing = freeze(seen, *seen.parameters)
    assert build_attack("hybrid").why_not(victim, nothing).code == "nothing-moved"
    assert run("dlg", victim, nothing)[0].reason_codes == ("nothing-moved",)


def test_facts_and_doubts_of_a_model_with_constants():
    victim, seen, _ = problem(stack(), "1.weight", "1.bias")
    assert update_facts(victim, [seen]).random is False
    assert doubts(victim, seen, "none") == ()
    noisy = {name: value + 0.01 * torch.randn_like(value) for name, value in seen.update.items()}
    assert any("noise" in one for one in doubts(victim, replace(seen, update=noisy), "none"))


def test_a_whole_update_of_zeros_stays_one():
    _, seen, _ = problem(stack())
    zeros = replace(seen, update={name: torch.zeros_like(value) for name, value in seen.update.items()})
    assert only_moving(zeros) is zeros


def test_a_layer_that_runs_twice_is_not_accused_of_noise():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(72, 24), nn.Linear(24, 24), nn.Linear(24, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = torch.sigmoid(self.a(x.flatten(1)))
            return self.out(torch.sigmoid(self.b(torch.sigmoid(self.b(h)))))

    victim, seen, _ = problem(Twice())
    assert doubts(victim, seen, "none") == ()
