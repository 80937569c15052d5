"""The statistics of a client's batch from the running buffers before and after, and replays that normalise by them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attacker.gradients.base import Products
from attacker.gradients.client_mode import as_trained
from attacker.gradients.double_backward import LoopProducts
from attacker.gradients.observed import observed_gradient
from attacker.gradients.one_step import gradient_products
from attacker.gradients.replay import Replay
from attacker.gradients.returned_statistics import pass_weights, returned_statistics, why_not_one_batch
from attacker.gradients.trace import trace
from attacker.reasons import Reason, because
from fl_precode import Observation
from tests.attacker.sent_back import client, norm_net

LAYERS = ("1", "4")


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("momentum", [0.1, 0.9, 1.0, None], ids=str)
def test_one_step_gives_the_batch_mean_and_unbiased_variance_exactly(momentum, affine):
    victim = norm_net(momentum=momentum, affine=affine)
    _, _, seen, ((first, second),) = client(victim)
    found = returned_statistics(victim.model, seen)
    assert list(found) == list(LAYERS)
    for layer, (mean, variance) in zip(found.values(), (first, second), strict=True):
        assert layer.of_one_batch
        torch.testing.assert_close(layer.mean, mean, rtol=0, atol=1e-14)
        torch.testing.assert_close(layer.variance, variance, rtol=1e-13, atol=1e-14)


def test_float32_buffers_cost_their_rounding_over_the_momentum():
    victim = norm_net(dtype=torch.float32)
    _, _, seen, (statistics,) = client(victim)
    for layer, truth in zip(returned_statistics(victim.model, seen).values(), statistics, strict=True):
        errors = [
            (own.double() - true).abs().max() for own, true in zip((layer.mean, layer.variance), truth, strict=True)
        ]
        assert 0 < max(errors) < 2 * torch.finfo(torch.float32).eps / 0.1 * 2.0


@pytest.mark.parametrize("counted", [True, False], ids=["counted", "announced"])
@pytest.mark.parametrize("momentum", [0.1, 1.0, None], ids=str)
def test_several_steps_give_a_weighted_mean_of_the_batches(momentum, counted):
    victim = norm_net(momentum=momentum)
    _, _, seen, steps = client(victim, images=4, batch=2, epochs=2)
    if not counted:
        seen = replace(seen, returned={n: v for n, v in seen.returned.items() if "tracked" not in n})
    found = returned_statistics(victim.model, seen)
    kept, added = pass_weights(momentum, 4, counted=3)
    assert kept + sum(added) == pytest.approx(1)
    for place, layer in enumerate(found.values()):
        assert layer.weights == pytest.approx([weight / sum(added) for weight in added])
        mean = sum(weight * step[place][0] for weight, step in zip(layer.weights, steps, strict=True))
        variance = sum(weight * step[place][1] for weight, step in zip(layer.weights, steps, strict=True))
        torch.testing.assert_close(layer.mean, mean, rtol=0, atol=1e-13)
        torch.testing.assert_close(layer.variance, variance, rtol=1e-12, atol=1e-13)
    assert why_not_one_batch(victim.model, seen).codes[0] == "statistics-mixed"


def without(seen: Observation, *parts: str) -> Observation:
    return replace(seen, returned={n: v for n, v in seen.returned.items() if not any(part in n for part in parts)})


def shrunk(seen: Observation) -> Observation:
    return replace(seen, returned={**seen.returned, "1.running_var": 0.1 * seen.buffers["1.running_var"]})


def silent(seen: Observation) -> Observation:
    return replace(without(seen, "tracked"), protocol=replace(seen.protocol, local_epochs=None))


REFUSED: dict[str, tuple[Callable[[Observation], Observation], float | None, Reason]] = {
    "absent": (
        lambda seen: replace(seen, returned={}), 0.1, because("statistics-not-returned", names=list(LAYERS)),
    ),
    "still": (lambda seen: replace(seen, returned=seen.buffers), 0.1, because("statistics-not-returned.still")),
    "odd": (shrunk, 0.1, because("statistics-unexplained", name="1", passes=1)),
    "steps": (silent, 0.1, because("statistics-uncounted")),
    "before": (
        lambda seen: replace(seen, buffers={n: v for n, v in seen.buffers.items() if "tracked" not in n}), None,
        because("statistics-uncounted.before", name="1"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_was_not_returned_is_named(what):
    change, momentum, expected = REFUSED[what]
    victim = norm_net(momentum=momentum)
    _, _, seen, _ = client(victim)
    reason = returned_statistics(victim.model, change(seen))
    assert isinstance(reason, Reason)
    assert (reason, reason.codes) == (expected, expected.codes)


def test_a_layer_that_was_not_returned_stops_replays_alone():
    victim = norm_net()
    _, _, seen, _ = client(victim)
    part = without(seen, "4.")
    assert list(returned_statistics(victim.model, part)) == ["1"]
    assert why_not_one_batch(victim.model, part).codes[0] == "statistics-not-returned"
    assert why_not_one_batch(victim.model, seen) is None


def cosine(products: Products) -> Tensor:
    return 1 - products.inner / (products.square * products.target.unsqueeze(1)).sqrt()


@pytest.mark.parametrize("way", ["loop", "selected"])
def test_the_true_batch_matches_under_known_statistics_and_others_are_measured_with_right_derivatives(way):
    victim = norm_net()
    x, y, seen, _ = client(victim)
    (group,) = as_trained(victim, [seen], by_returned=True)
    (own,) = group.observations
    replay, target = Replay(group.victim, own.parameters, own.buffers), observed_gradient(own)
    if way == "loop":
        products = LoopProducts(replay, [target])
    else:
        products = gradient_products(replay, [target], trace(group.victim), batch_size=3)
    labels = y.expand(1, 1, 3)
    assert cosine(products(x[None, None], labels)) < 1e-12
    torch.manual_seed(1)
    other = (x + 0.3 * torch.randn_like(x))[None, None].requires_grad_()
    direction = torch.randn_like(other)
    slope = (torch.autograd.grad(products(other, labels).inner.sum(), other)[0] * direction).sum()
    step = 1e-6 * direction
    with torch.no_grad():
        ahead, behind = (products(other + sign * step, labels).inner.sum() for sign in (1, -1))
    torch.testing.assert_close(slope, (ahead - behind) / 2e-6, rtol=1e-5, atol=0)


def test_known_statistics_change_what_other_candidates_are_measured_as():
    victim = norm_net()
    x, y, seen, _ = client(victim)
    measured = []
    for by_returned in (False, True):
        (group,) = as_trained(victim, [seen], by_returned=by_returned)
        (own,) = group.observations
        products = LoopProducts(Replay(group.victim, own.parameters, own.buffers), [observed_gradient(own)])
        measured.append(float(cosine(products((x * 0.5)[None, None], y.expand(1, 1, 3)))))
    # A brighter or darker copy is the same image to a first layer that normalises by its own batch.
    assert measured[1] > 1.5 * measured[0]
