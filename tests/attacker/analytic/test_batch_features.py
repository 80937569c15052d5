"""The features of a batch are recovered from a head's gradient alone, as far as its softmax tells them apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from attacker.analytic.heads.batch_features import DETERMINED, HeadTraining, features_of_batch
from attacker.analytic.heads.update_rounding import rounding_of
from fl_precode import Observation, Protocol

WIDTH, CLASSES = 40, 10


def trained_on(features, labels, *, scale=0.2, bias=True, steps=1, rate=1.0, momentum=0.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    weight = scale * torch.randn(CLASSES, WIDTH, generator=generator, dtype=torch.float64) / WIDTH**0.5
    shift = scale * torch.randn(CLASSES, generator=generator, dtype=torch.float64) * bias
    sent = {"weight": weight, "bias": shift} if bias else {"weight": weight}
    own = [value.clone().requires_grad_(True) for value in sent.values()]
    optimiser = torch.optim.SGD(own, lr=rate, momentum=momentum)
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(F.linear(features, own[0], own[1] if bias else None), labels).backward()
        optimiser.step()
    plain = sum((steps - k) * momentum**k for k in range(steps))
    seen = {
        name: ((before - after.detach()) / (rate * plain)).to(dtype)
        for (name, before), after in zip(sent.items(), own, strict=True)
    }
    observation = gradient_of({name: value.to(dtype) for name, value in sent.items()}, seen, len(labels))
    return HeadTraining(
        weight=weight,
        bias=shift,
        weight_gradient=seen["weight"].double(),
        bias_gradient=seen["bias"].double() if bias else None,
        steps=steps,
        learning_rate=rate,
        momentum=momentum,
        rounding=rounding_of(observation, "weight", len(labels)),
        bias_rounding=rounding_of(observation, "bias", len(labels)) if bias else 0.0,
    )


def gradient_of(parameters, update, size, *, kind="gradient", protocol=None):
    return Observation(
        parameters=parameters, buffers={}, update=update, kind=kind, batch_size=size,
        protocol=protocol or Protocol(name="fedsgd"), round=1, node="1",
    )  # fmt: skip


def drawn(count, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, WIDTH, generator=generator, dtype=torch.float64) * 2


def worst(found, features):
    """Of each true row the relative distance to what was found nearest to it, the largest; and the order."""
    apart = torch.cdist(features, found.features)
    order = apart.argmin(dim=1)
    assert sorted(order.tolist()) == list(range(len(features)))
    return float(apart.min(dim=1).values.max() / features.norm(dim=1).min()), order


def solved(head, labels, **settings):
    return features_of_batch(head, labels, torch.Generator().manual_seed(0), **settings)


@pytest.mark.parametrize("labels", [[3], [7, 1], [4, 4], [0, 9, 2, 5], [1, 1, 6, 8, 8, 3], [0, 1, 2, 3, 4, 5, 6, 7]])
@pytest.mark.parametrize(("dtype", "below"), [(torch.float64, 1e-6), (torch.float32, 2e-2)])
def test_features_are_those_of_the_images_in_any_batch_below_the_classes(labels, dtype, below):
    features, known = drawn(len(labels)), torch.tensor(labels)
    found = solved(trained_on(features, known, scale=1.0, dtype=dtype), known.flip(0))
    assert found.residual <= found.solved < {torch.float64: 1e-12, torch.float32: 1e-6}[dtype]
    assert found.determined == len(labels)
    error, order = worst(found, features)
    assert error < below
    assert found.labels[order].tolist() == labels


def test_a_head_without_a_bias_and_several_local_steps():
    features, known = drawn(4), torch.tensor([0, 9, 2, 2])
    for settings in ({"bias": False}, {"steps": 5, "rate": 0.1, "momentum": 0.9}):
        head = trained_on(features, known, scale=1.0, **settings)
        assert worst(solved(head, known), features)[0] < 1e-6
    for other in (replace(head, momentum=0.0), replace(head, steps=2)):
        found = solved(other, known)
        assert found.residual > found.solved, "another training gives another update"
        assert found.determined == 0


def test_wrong_labels_are_no_solution_and_starts_and_steps_are_used():
    features, known = drawn(4), torch.tensor([0, 9, 2, 5])
    head = trained_on(features, known, scale=1.0)
    wrong = solved(head, torch.tensor([0, 9, 2, 6]))
    assert wrong.residual > 10 * wrong.solved
    assert wrong.starts == 12
    assert solved(head, torch.tensor([0, 9, 2, 6]), starts=2).starts == 2
    assert solved(head, known, starts=1, steps=1).residual > solved(head, known, starts=1).residual


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_what_counts_as_solved_follows_from_the_numbers_that_were_sent(dtype):
    features, known = drawn(6), torch.tensor([1, 1, 6, 8, 8, 3])
    exact, rounded = trained_on(features, known, scale=1.0), trained_on(features, known, scale=1.0, dtype=dtype)
    error = float(torch.linalg.vector_norm(rounded.weight_gradient - exact.weight_gradient))
    if dtype is not torch.float64:
        # Rounding alone is one of the several roundings that the client's own arithmetic makes.
        assert error < rounded.rounding < 6 * error
    found = solved(rounded, known)
    assert found.residual <= found.solved
    assert found.solved == pytest.approx(2 * torch.finfo(dtype).eps, rel=0.9, abs=3e-13)
    apart = torch.cdist(features, found.features)
    true_errors = (apart.min(dim=0).values / features.norm(dim=1).min()).tolist()
    assert all(true < 4 * claimed + 1e-11 for true, claimed in zip(true_errors, found.errors.tolist(), strict=True)), (
        "errors are not larger than what is said of them"
    )


def test_false_minima_and_images_that_rounding_hides_do_not_count():
    features, known = drawn(6), torch.tensor([1, 1, 1, 1, 8, 3])
    single = solved(trained_on(features, known, scale=1.0, dtype=torch.float32), known, starts=1, steps=6)
    assert single.solved < 1e-5
    assert single.residual > single.solved, "a search that was cut short is no solution, however little it misses"
    alike = drawn(6)
    alike[1] = alike[0] + 1e-3 * alike[1]
    found = solved(trained_on(alike, known, scale=1.0, dtype=torch.float16), known)
    assert found.determined <= 4
    assert (found.errors[4:] < DETERMINED).all(), "images of classes of their own are known all the same"


def test_rounding_of_weights_that_were_subtracted_is_that_of_the_weights():
    generator = torch.Generator().manual_seed(0)
    weight, gradient = (torch.randn(30, 20, generator=generator, dtype=torch.float64) for _ in range(2))
    protocol = Protocol(name="fedavg", local_steps=1, learning_rate=0.01)
    for sent in (torch.float32, torch.float16, torch.bfloat16):
        before = weight.to(sent).float()
        after = (before.double() - 0.01 * gradient).to(sent).float()
        update = {"weight": after - before}
        seen = gradient_of({"weight": before}, update, 1, kind="weights", protocol=protocol)
        truly = float(torch.linalg.vector_norm(update["weight"].double() / -0.01 - gradient))
        assert rounding_of(seen, "weight", 1) == pytest.approx(truly, rel=0.2)
