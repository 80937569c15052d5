"""The features of a batch come back from a head's gradient alone, as far as its softmax tells them apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from attacker.analytic.heads.batch_features import SOLVED, HeadTraining, features_of_batch

WIDTH, CLASSES = 40, 10


def trained_on(features, labels, *, scale=0.2, bias=True, steps=1, rate=1.0, momentum=0.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    weight = scale * torch.randn(CLASSES, WIDTH, generator=generator, dtype=torch.float64) / WIDTH**0.5
    shift = scale * torch.randn(CLASSES, generator=generator, dtype=torch.float64) * bias
    own = [value.clone().requires_grad_(True) for value in ((weight, shift) if bias else (weight,))]
    optimiser = torch.optim.SGD(own, lr=rate, momentum=momentum)
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(F.linear(features, own[0], own[1] if bias else None), labels).backward()
        optimiser.step()
    plain = sum((steps - k) * momentum**k for k in range(steps))
    seen = [
        ((before - after.detach()) / (rate * plain)).to(dtype).double()
        for before, after in zip((weight, shift), own, strict=False)
    ]
    return HeadTraining(
        weight=weight, bias=shift, weight_gradient=seen[0], bias_gradient=seen[1] if bias else None, steps=steps,
        learning_rate=rate, momentum=momentum,
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
    assert found.residual < SOLVED
    error, order = worst(found, features)
    assert error < below
    assert found.labels[order].tolist() == labels


def test_a_head_without_a_bias_and_several_local_steps():
    features, known = drawn(4), torch.tensor([0, 9, 2, 2])
    for settings in ({"bias": False}, {"steps": 5, "rate": 0.1, "momentum": 0.9}):
        head = trained_on(features, known, scale=1.0, **settings)
        assert worst(solved(head, known), features)[0] < 1e-6
    assert solved(replace(head, momentum=0.0), known).residual > SOLVED, "another training gives another update"
    assert solved(replace(head, steps=2), known).residual > SOLVED


def test_wrong_labels_are_no_solution_and_starts_and_steps_are_used():
    features, known = drawn(4), torch.tensor([0, 9, 2, 5])
    head = trained_on(features, known, scale=1.0)
    wrong = solved(head, torch.tensor([0, 9, 2, 6]))
    assert wrong.residual > 10 * SOLVED
    assert wrong.starts == 12
    assert solved(head, torch.tensor([0, 9, 2, 6]), starts=2).starts == 2
    assert solved(head, known, starts=1, steps=1).residual > solved(head, known, starts=1).residual
