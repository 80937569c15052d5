"""Slow and obvious versions that the fast ones must equal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from attacker.victim import Victim
from fl_precode import sample_noise


def loop_gradient(
    victim: Victim, parameters: Mapping[str, Tensor], x: Tensor, y: Tensor, noise: Sequence[Tensor] = ()
) -> dict[str, Tensor]:
    """Gradient of one batch (batch, C, H, W) by plain autograd, with a graph so that it can be differentiated again."""

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = victim.model

        def forward(self) -> Tensor:
            return victim.training_loss(x, y)

    weights = {name: value.detach().requires_grad_(True) for name, value in parameters.items()}
    # Attention by plain matrix products: torch's other kernels have no second derivative.
    with sample_noise(values=list(noise)), sdpa_kernel(SDPBackend.MATH):
        loss = functional_call(Loss(), {f"model.{name}": value for name, value in weights.items()}, ())
    found = torch.autograd.grad(loss, list(weights.values()), create_graph=True, materialize_grads=True)
    return dict(zip(weights, found, strict=True))


def loop_cosine_distance(
    victim: Victim,
    parameters: Mapping[str, Tensor],
    targets: Sequence[Mapping[str, Tensor]],
    candidates: Tensor,
    labels: Tensor,
    noise: Sequence[Tensor] = (),
) -> Tensor:
    """Double backward, one candidate after another: (victims, restarts)."""
    victims, restarts = candidates.shape[:2]
    rows = []
    for v in range(victims):
        target = torch.cat([targets[v][name].flatten() for name in parameters])
        row = []
        for r in range(restarts):
            eps = [value[v, r] for value in noise]
            found = loop_gradient(victim, parameters, candidates[v, r], labels[v, r], eps)
            gradient = torch.cat([found[name].flatten() for name in parameters])
            row.append(1 - (gradient * target).sum() / (gradient.norm() * target.norm()))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def loop_total_variation(batch: Tensor) -> float:
    """mean |dh| + mean |dv| of one batch (batch, C, H, W), pixel by pixel."""
    across: list[float] = []
    down: list[float] = []
    for image in batch.tolist():
        for channel in image:
            for h, row in enumerate(channel):
                for w, value in enumerate(row):
                    if w + 1 < len(row):
                        across.append(abs(row[w + 1] - value))
                    if h + 1 < len(channel):
                        down.append(abs(channel[h + 1][w] - value))
    return sum(sum(part) / len(part) for part in (across, down) if part)


def wilson_by_formula(successes: int, victims: int, confidence: float) -> tuple[float, float]:
    """Wilson 1927: ((p + z²/2n) ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    n, p = victims, successes / victims
    middle, width = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - width) / (1 + z * z / n), (middle + width) / (1 + z * z / n)
