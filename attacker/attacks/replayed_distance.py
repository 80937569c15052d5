"""How far the gradient of images found in closed form is from the one observed."""

from __future__ import annotations

import torch
from torch import Tensor

from attacker.gradients.base import GradientProducts
from attacker.gradients.distances import cosine_distance
from attacker.gradients.double_backward import LoopProducts
from attacker.gradients.fedavg.unrolled_sgd import LocalTrainingProducts, why_not_unrolled
from attacker.gradients.observed import observed_gradient, why_not_one_step
from attacker.gradients.replay import Replay
from attacker.gradients.trace import Trace
from attacker.victim import Victim
from fl_precode.observation import Observation


def replayed_distance(
    victim: Victim, seen: Trace, observation: Observation, inputs: Tensor, labels: Tensor
) -> float | None:
    """``1 - cos(g(x), g*)`` over all parameters, or None where the client's work cannot be replayed.

    That is behind a bottleneck, whose noise is unknown, where too little was announced of several local steps, and
    where the model returns no class scores.

    Args:
        victim: Public knowledge about the model.
        seen: A trace of the model.
        observation: The update.
        inputs: (batch, channels, height, width), normalised.
        labels: (batch,), in the order of the images.
    """
    if seen.bottlenecks or victim.why_no_loss is not None:
        return None
    replay = Replay(victim, observation.parameters, observation.buffers)
    products: GradientProducts
    if why_not_one_step(observation) is None:
        products = LoopProducts(replay, [observed_gradient(observation)])
    elif why_not_unrolled(observation) is None:
        products = LocalTrainingProducts(replay, [observation], vmapped=False)
    else:
        return None
    with torch.no_grad():
        found = cosine_distance(products(inputs[None, None], labels[None, None].to(inputs.device)))
    return max(0.0, float(found))  # rounding may end below zero
