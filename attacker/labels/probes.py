"""What the model says to random inputs, in place of the client's images that the server does not have."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from attacker.engine.products import precise
from attacker.engine.trace import LayerRun
from attacker.victim import Victim
from fl_precode.bottleneck import sample_noise
from fl_precode.observation import Observation

_AT_ONCE = 64  # inputs in one pass, so that memory stays bounded


class Probed(NamedTuple):
    """Means over random inputs, at the weights that the server sent.

    Attributes:
        probabilities: (classes,), p_c, softmax of the classifier's outputs; sums to 1.
        features: Scalar, the sum of the features before the classifier.
        offsets: (classes,), p_c times that sum: what a class without images has as its row sum.
    """

    probabilities: Tensor
    features: Tensor
    offsets: Tensor


def probe_classifier(
    victim: Victim, observation: Observation, classifier: LayerRun, *, generator: torch.Generator, probes: int
) -> Probed:
    """Run the model on standard normal inputs at the observed weights and buffers, in evaluation mode.

    Args:
        victim: Public knowledge about the model.
        observation: Its weights and buffers are used.
        classifier: The Linear layer that runs last; its outputs are taken as logits.
        generator: Source of the inputs and of the bottlenecks' noise.
        probes: Number of inputs, 1 or more.

    Returns:
        The means, in float64 where the device has it.

    Raises:
        ValueError: If there are no probes, or the model's answers are not finite.
    """
    if probes < 1:
        raise ValueError(f"expected 1 or more probes, got {probes}")
    like = next(iter(observation.parameters.values()))
    chunks: list[tuple[Tensor, Tensor]] = []

    def record(module: nn.Module, arguments: tuple[Any, ...], logits: Tensor) -> None:
        del module
        p, h = precise(logits).softmax(dim=-1), precise(arguments[0]).sum(dim=-1, keepdim=True)
        # A classifier may run at several places of one image; its gradient then sums over them as these rows do.
        chunks.append((p.reshape(-1, p.shape[-1]), h.reshape(-1, 1)))

    handle = classifier.module.register_forward_hook(record)
    try:
        with torch.no_grad(), sample_noise(generator=generator):
            for first in range(0, probes, _AT_ONCE):
                shape = (min(_AT_ONCE, probes - first), *victim.inputs.shape)
                inputs = torch.randn(shape, generator=generator, dtype=like.dtype, device=generator.device)
                state = {**observation.buffers, **observation.parameters}
                functional_call(victim.model, state, (inputs.to(like.device),))
    finally:
        handle.remove()
    p, h = (torch.cat(values) for values in zip(*chunks, strict=True))
    if not bool(torch.isfinite(p).all()):
        raise ValueError(f"the model {victim.name!r} answers random inputs with NaN at the weights of this observation")
    return Probed(probabilities=p.mean(dim=0), features=h.mean(), offsets=(p * h).mean(dim=0))
