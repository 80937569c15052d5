"""The first layers alone: what they made of the images is known, and the gradient of the loss with respect to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from attacker.gradients.replay import Replay
from attacker.gradients.second_derivatives import twice_differentiable
from attacker.objectives.feature_prior import received_by
from attacker.objectives.image_priors import TotalVariation
from attacker.optim.problem import Objective


class FirstLayers(Objective):
    """Squared distances of a known map and of the first layers' gradients, each relative, and total variation.

    With f(x; w) what enters a layer, h what entered it, and d the gradient of the loss with respect to h, the gradient
    of weights w before it is that of ``d' f(x; w)``: no label and no later layer is needed for it.

    Args:
        replay: The model, weights and buffers.
        layer: Name of the layer that the map enters.
        known: (batch, channels, height, width), h.
        steep: Likewise, d.
        gradient: Gradient of the client's loss, by name.
        total_variation: Weight of this prior.
    """

    def __init__(
        self,
        replay: Replay,
        layer: str,
        known: Tensor,
        steep: Tensor,
        gradient: Mapping[str, Tensor],
        total_variation: float,
    ) -> None:
        self._layer, self._known, self._steep, self._weight = layer, known, steep, total_variation
        self._buffers, self._victim, self._prior = replay.buffers, replay.victim, TotalVariation()
        fixed = {name: value.detach() for name, value in replay.parameters.items()}
        trained = {n: v.clone().requires_grad_() for n, v in fixed.items() if n in gradient and v.is_floating_point()}
        self._parameters = {**fixed, **trained}
        names = list(trained)
        with torch.enable_grad():
            made = self._made(known.new_zeros(len(known), *replay.victim.inputs.shape))
        reached: tuple[Tensor | None, ...] = (None,) * len(names)
        if made.requires_grad:
            reached = torch.autograd.grad((made * steep).sum(), [trained[name] for name in names], allow_unused=True)
        self._names = [name for name, value in zip(names, reached, strict=True) if value is not None]
        self._gradient = [gradient[name].to(known) for name in self._names]
        self._size = sum(float(value.square().sum()) for value in self._gradient)

    def _made(self, images: Tensor) -> Tensor:
        replay = Replay(self._victim, self._parameters, self._buffers)
        return received_by(replay, images, (), batch=len(images), layers=[self._layer])[self._layer]

    def _distance(self, images: Tensor) -> Tensor:
        watched = torch.is_grad_enabled()
        weights = [self._parameters[name] for name in self._names]
        found: tuple[Tensor, ...] = ()
        with torch.enable_grad(), twice_differentiable(self._victim.model):
            made = self._made(images)
            if weights:
                scalar = (made * self._steep).sum()
                found = torch.autograd.grad(scalar, weights, create_graph=watched, retain_graph=watched)
        missed = (made - self._known).square().sum() / self._known.square().sum()
        for one, seen in zip(found, self._gradient, strict=True):
            missed = missed + (one - seen).square().sum() / (self._size or 1.0)
        return missed

    def distances(self, x: Tensor) -> Tensor:
        """Distance of every candidate, of one victim."""
        return torch.stack([torch.stack([self._distance(images) for images in restarts]) for restarts in x])

    def priors(self, x: Tensor) -> Tensor:
        """The weighted total variation."""
        return self._weight * self._prior(x)

    def keep(self, victims: Sequence[int], restarts: Sequence[Sequence[int]]) -> Self:
        """The same: all candidates are of one victim."""
        del victims, restarts
        return self
