"""Probes of the model by random inputs, in place of the client's images that the server does not have."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from attacker.gradients.client_mode import as_trained
from attacker.gradients.trace import LayerRun
from attacker.labels.evidence import ClassifierGradient
from attacker.optim.double_precision import precise
from attacker.victim import Victim
from fl_precode.defences.precode import sample_noise
from fl_precode.observation import Gradients, Observation

_AT_ONCE = 64  # inputs in one pass, so that memory stays bounded


class Probed(NamedTuple):
    """Means over random inputs, and over the weights of all local steps.

    Attributes:
        probabilities: (classes,), p_c, softmax of the classifier's outputs; sums to 1.
        features: Scalar, the sum of the features before the classifier.
        offsets: (classes,), p_c times that sum: what a class without images has as its row sum.
        negative: Scalar, share of the features' absolute sum that is below zero.
    """

    probabilities: Tensor
    features: Tensor
    offsets: Tensor
    negative: Tensor


def probe_classifier(
    victim: Victim, observation: Observation, evidence: ClassifierGradient, *, generator: torch.Generator, probes: int
) -> Probed:
    """Run the model on standard normal inputs at the observed weights and buffers, as the client ran it.

    Batch normalisation goes by the probes where it went by the client's images, else by the observed buffers: with the
    buffers of an untrained model, features of other means would give other probabilities. All else is in evaluation
    mode.

    For an update of T > 1 steps also at the returned weights, on the same inputs. The steps' gradients were taken
    at the weights of times 0 to T - 1; with answers that move evenly from the first weights to the last, their mean has
    the shares ``(T + 1) / 2T`` and ``(T - 1) / 2T`` of the two ends.

    Args:
        victim: Public knowledge about the model.
        observation: Its weights, buffers and update are used.
        evidence: The classifier, whose outputs are taken as logits, and the number of steps; one where it is unknown.
        generator: Source of the inputs and of the bottlenecks' noise.
        probes: Number of inputs, 1 or more.

    Returns:
        The means, in float64 where the device has it.

    Raises:
        ValueError: If there are no probes, or the model's answers are not finite.
    """
    if probes < 1:
        raise ValueError(f"expected 1 or more probes, got {probes}")
    state, steps = generator.get_state(), evidence.steps or 1
    first = _probe_at(victim, observation, observation.parameters, evidence.layer, generator=generator, probes=probes)
    if steps == 1:
        return first
    returned = {name: value + observation.update[name].to(value) for name, value in observation.parameters.items()}
    generator.set_state(state)
    last = _probe_at(victim, observation, returned, evidence.layer, generator=generator, probes=probes)
    share = (steps - 1) / (2 * steps)
    return Probed(*((1 - share) * start + share * end for start, end in zip(first, last, strict=True)))


def _probe_at(
    victim: Victim,
    observation: Observation,
    parameters: Gradients,
    classifier: LayerRun,
    *,
    generator: torch.Generator,
    probes: int,
) -> Probed:
    like = next(iter(parameters.values()))
    (as_client,) = as_trained(victim, [observation])
    model, buffers = as_client.victim.model, as_client.observations[0].buffers
    chunks: list[tuple[Tensor, Tensor, Tensor]] = []

    def record(module: nn.Module, arguments: tuple[Any, ...], logits: Tensor) -> None:
        del module
        if logits.shape[-1] == 1:  # as two logits, of which the first is 0; see `by_class`
            logits = torch.cat([torch.zeros_like(logits), logits], dim=-1)
        p, values = precise(logits).softmax(dim=-1), precise(arguments[0])
        h, size = values.sum(dim=-1, keepdim=True), values.abs().sum(dim=-1, keepdim=True)
        # A classifier may run at several places of one image; its gradient then sums over them as these rows do.
        chunks.append((p.reshape(-1, p.shape[-1]), h.reshape(-1, 1), size.reshape(-1, 1)))

    handle = model.get_submodule(classifier.name).register_forward_hook(record)
    try:
        with torch.no_grad(), sample_noise(generator=generator):
            for first in range(0, probes, _AT_ONCE):
                shape = (min(_AT_ONCE, probes - first), *victim.inputs.shape)
                inputs = torch.randn(shape, generator=generator, dtype=like.dtype, device=generator.device)
                functional_call(model, {**buffers, **parameters}, (inputs.to(like.device),))
    finally:
        handle.remove()
    p, h, size = (torch.cat(values) for values in zip(*chunks, strict=True))
    if not bool(torch.isfinite(p).all() and torch.isfinite(h).all()):
        raise ValueError(
            f"the model {victim.name!r} answers random inputs with NaN or infinity at the weights of this round"
        )
    negative = (size - h).sum() / (2 * size.sum()).clamp_min(1e-300)
    return Probed(probabilities=p.mean(dim=0), features=h.mean(), offsets=(p * h).mean(dim=0), negative=negative)
