"""First-layer inversion: one division gives the image when the first layer is fully connected and has a bias."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from attacker.attacks.attack import Attack, Outcome, Progress, Reconstruction
from attacker.attacks.granted import check_labels
from attacker.engine import (
    GradientProducts,
    LocalTrainingProducts,
    LoopProducts,
    Replay,
    Trace,
    cosine_distance,
    observed_gradient,
    trace,
    why_not_one_step,
    why_not_unrolled,
)
from attacker.labels import idlg_label
from attacker.victim import Victim
from fl_precode.observation import Gradients, Observation

# Singular values below this share of the largest are noise: updates of weights carry float32 rounding of the weights.
_RANK_TOLERANCE = 1e-3
_RANK_LIMIT = 8


@dataclass(frozen=True, kw_only=True)
class FirstLayerInversion(Attack):
    """``x = dW_i / db_i`` for the row i with the largest ``|db_i|`` (Phong et al. 2017, TIFS 13(5)).

    Every row of a Linear layer's weight gradient is the layer's input times that row's bias gradient, whatever comes
    after the layer: a bottleneck behind it only rescales both sides of the quotient. Exact up to rounding; computed in
    float64 and returned in the observation's dtype, neither clamped nor refined.

    Fits one image, and a first layer that is Linear with bias and sees the flattened image itself. Local training on
    that one image is as exact as a gradient, whatever the number of steps, the learning rate and the momentum: every
    step changes row i by the image times a number, and its bias by that number. Weight decay adds the weights
    themselves; it is taken back for one step of announced learning rate, and is taken as absent when not announced.

    The matching loss is measured where the client's work can be replayed: for deterministic models (behind a bottleneck
    the client's noise is unknown, and a replay would say nothing about the image) and announced local steps.
    """

    @property
    def name(self) -> str:
        """Name in the registry."""
        return "first-layer"

    def refuses(self, victim: Victim, observation: Observation) -> str | None:
        """Why the attack cannot fit the observation, or None when it can."""
        if observation.batch_size is not None and observation.batch_size != 1:
            size = observation.batch_size
            return f"made for one image: the first layer's gradient of {size} images has rank up to {size}"
        if observation.kind == "weights" and observation.protocol.optimiser == "adam":
            return "local Adam divides every entry by its own size, and the quotient of two of them says nothing"
        if observation.protocol.weight_decay and why_not_one_step(observation) is not None:
            return "weight decay over several local steps adds weights to the update that nobody sends"
        layer = _first_linear(trace(victim))
        if isinstance(layer, _Refusal):
            return layer.reason
        if not bool((observation.update[layer.bias] != 0).any()):
            return f"the gradient of {layer.bias} is zero everywhere: no unit of the first layer was active"
        if observation.batch_size is None:
            rank = _rank(observation.update[layer.weight])
            if rank != 1:
                more = " or more" if rank == _RANK_LIMIT else ""
                return (
                    f"made for one image: the gradient of {layer.weight} has rank {rank}{more}, one image gives rank 1"
                )
        return None

    def run(
        self,
        victim: Victim,
        observations: Sequence[Observation],
        labels: Sequence[Tensor | None],
        generator: Generator,
        progress: Progress | None,
    ) -> list[Reconstruction]:
        """One division for each observation; consumes no randomness."""
        if not observations:
            return []
        seen = trace(victim)
        results = []
        for index, (observation, granted) in enumerate(zip(observations, labels, strict=True)):
            results.append(_invert(victim, seen, observation, granted))
            if progress is not None:
                progress((index + 1) / len(observations), None)
        return results


@dataclass(frozen=True)
class _Refusal:
    """Why a model has no first layer that can be inverted."""

    reason: str


def _has_bias(layer: nn.Linear) -> bool:
    return "bias" in dict(layer.named_parameters(recurse=False))


@dataclass(frozen=True)
class _FirstLinear:
    """Names of the parameters of a Linear layer that sees the image itself."""

    weight: str
    bias: str


def _first_linear(seen: Trace) -> _FirstLinear | _Refusal:
    if not seen.layers:
        return _Refusal("the model has no layer with parameters")
    first = seen.layers[0]
    kind = type(first.module).__name__
    if not isinstance(first.module, nn.Linear):
        return _Refusal(f"the first layer {first.name!r} is a {kind}, the attack needs a Linear layer")
    if not _has_bias(first.module):
        return _Refusal(f"the first layer {first.name!r} has no bias, the attack divides by the bias gradient")
    received, image = first.inputs, seen.probe.flatten(1)
    if received is None or received.shape != image.shape or not torch.equal(received, image):
        return _Refusal(f"the first layer {first.name!r} does not see the flattened image itself")
    prefix = f"{first.name}." if first.name else ""
    return _FirstLinear(weight=f"{prefix}weight", bias=f"{prefix}bias")


def _rank(matrix: Tensor) -> int:
    """Numerical rank, counted up to a small limit on a random projection of the rows."""
    limit = min(_RANK_LIMIT, *matrix.shape)
    generator = torch.Generator(matrix.device).manual_seed(0)
    mix = torch.randn(limit, matrix.shape[0], generator=generator, dtype=torch.float64, device=matrix.device)
    singular = torch.linalg.svdvals(mix @ matrix.double())
    return int((singular > _RANK_TOLERANCE * singular[0]).sum())


def _invert(victim: Victim, seen: Trace, observation: Observation, granted: Tensor | None) -> Reconstruction:
    began = time.perf_counter()
    layer = _first_linear(seen)
    assert not isinstance(layer, _Refusal)
    gradient = observed_gradient(observation)
    classes = victim.inputs.classes
    labels = (
        idlg_label(seen.last_linear(), gradient, classes=classes)
        if granted is None
        else check_labels(granted, batch_size=1, classes=classes)
    )
    weight, bias = gradient[layer.weight].double(), gradient[layer.bias].double()
    row = int(bias.abs().argmax())
    inputs = (weight[row] / bias[row]).reshape(1, *victim.inputs.shape).to(gradient[layer.weight].dtype)
    if not bool(inputs.isfinite().all()):
        return Reconstruction(inputs=None, labels=labels, outcome=Outcome.DIVERGED, reason="the quotient is not finite")
    matching = None
    replayed = _replayed(victim, observation, gradient)
    if labels is not None and replayed is not None and not seen.bottlenecks:
        products = replayed(inputs[None, None], labels[None, None].to(inputs.device))
        matching = max(0.0, float(cosine_distance(products)))  # rounding may end below zero
    return Reconstruction(
        inputs=inputs,
        labels=labels,
        outcome=Outcome.CONVERGED,
        matching_loss=matching,
        seconds=time.perf_counter() - began,
    )


def _replayed(victim: Victim, observation: Observation, gradient: Gradients) -> GradientProducts | None:
    """What compares an image's update with the observed one, or None when too little was announced."""
    replay = Replay(victim, observation.parameters, observation.buffers)
    if why_not_one_step(observation) is None:
        return LoopProducts(replay, [gradient])
    if why_not_unrolled(observation) is not None:
        return None
    return LocalTrainingProducts(replay, [observation], vmapped=False)
