"""Replay of local training by one gradient at surrogate weights between those sent and those received back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any, Self

import torch
from torch import Tensor

from attacker.engine.adam import Adam
from attacker.engine.by_victim import VictimLayers
from attacker.engine.distance import Elements
from attacker.engine.factored import FactoredProducts, why_not_factored
from attacker.engine.formed import ObservedUpdates, fastest_exact, form_each, weight_gradient
from attacker.engine.observed import observed_gradient
from attacker.engine.products import GradientProducts, Products, Replay
from attacker.engine.survivors import Cut
from attacker.engine.trace import Trace
from fl_precode.observation import Observation

LEARNING_RATE = 1e-3
"""Adam's step for the surrogate's position, which lies in [0, 1]."""


class SurrogateProducts(GradientProducts):
    """Products of ``gradient at a w0 + (1 - a) wT`` with the observed update, on the scale of one gradient.

    The surrogate model extension of Zhu, Yao, Blaschko (ICML 2023): local training went from the weights w0 that were
    sent to wT = w0 + update, and somewhere on the way the gradient of all images points where the whole update does.
    It costs one gradient, however many steps there were, and needs to know neither their number nor their batches.

    ``a`` belongs to the candidate. It starts at 1/2 and is learned with the images: whenever a result is differentiated
    with respect to the candidates, Adam moves ``a`` along the derivative that the same backward pass yields, and clamps
    it to [0, 1]. The next call uses the new value. Where no derivative is asked for, nothing moves.

    Args:
        replay: The victim's loss at the weights w0 that the clients received.
        observations: One for each victim, of the same problem (`group_observations`).
        seen: A trace of the victim's model.
        way: "factored", for models of plain layers only: their outputs are linear in the weights, so that each is mixed
            from the outputs at both ends and no weight of a candidate is formed; "vmap" or "loop" for any model.
            `surrogate_products` chooses.
        learning_rate: Of ``a``; 0 keeps it at 1/2, for searches that measure a point twice.
        matched: Names of the parameters that count; None for all.
        elements: Which elements of the update count, and how; None compares all, by inner products. Not "factored".
        units: Of each victim, by parameter name, what updates are divided by; None for 1. Not "factored".

    Attributes:
        way: As given.
    """

    def __init__(
        self,
        replay: Replay,
        observations: Sequence[Observation],
        seen: Trace,
        *,
        way: str,
        learning_rate: float = LEARNING_RATE,
        matched: Collection[str] | None = None,
        elements: Elements | None = None,
        units: Sequence[Mapping[str, float]] | None = None,
    ) -> None:
        self._replay = replay
        self._position = _Position(learning_rate)
        self.way = way
        self._factored: FactoredProducts | None = None
        updates = [one.update for one in observations]
        if way == "factored":
            targets = [observed_gradient(one) for one in observations]
            batch_size = observations[0].batch_size or 1
            self._factored = FactoredProducts(replay, targets, seen, batch_size=batch_size, matched=matched)
            ends = [
                Replay(replay.victim, {k: w + one.update[k] for k, w in one.parameters.items()}, replay.buffers)
                for one in observations
            ]
            self._layers = MixedLayers(seen, replay, ends, large=self._factored.large)
        else:
            self._observed = ObservedUpdates(observations, matched, elements, units)
            self._updates = {name: torch.stack([one[name] for one in updates]) for name in updates[0]}

    @property
    def position(self) -> Tensor | None:
        """``a`` of every candidate, (victims, restarts) in [0, 1]; None before the first call."""
        return self._position.values

    def __call__(self, candidates: Tensor, labels: Tensor, noise: Sequence[Tensor] = ()) -> Products:
        """Products for every candidate, ``batch`` being all images of the client; see `GradientProducts.__call__`."""
        position = self._position.of(candidates)
        if self._factored is not None:
            with self._layers.installed(position):
                return self._factored(candidates, labels, noise)
        victims, restarts = candidates.shape[:2]
        back = {
            name: value.unsqueeze(1).expand(-1, restarts, *value.shape[1:]) for name, value in self._updates.items()
        }
        labels = labels.expand(candidates.shape[:3])
        formed = form_each(self._gradient, candidates, labels, position, back, list(noise), vmapped=self.way == "vmap")
        return self._observed.products(formed)

    def keep(self, victims: Sequence[int], restarts: Sequence[Sequence[int]] | None = None) -> Self:
        """Products for some of the candidates, whose ``a`` goes on where it is; see `GradientProducts.keep`."""
        kept, chosen = copy(self), list(victims)
        kept._position = self._position.keep(chosen, restarts)
        if self._factored is not None:
            kept._factored = self._factored.keep(chosen)
            kept._layers = self._layers.keep(chosen)
        else:
            kept._observed = self._observed.keep(chosen)
            kept._updates = {name: value[chosen] for name, value in self._updates.items()}
        return kept

    def _gradient(
        self, x: Tensor, y: Tensor, position: Tensor, update: Mapping[str, Tensor], noise: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Gradient of one candidate (images, ...) at its surrogate weights."""
        sent = self._replay.parameters
        weights = {name: value.detach() + (1 - position).to(value.dtype) * update[name] for name, value in sent.items()}
        return weight_gradient(self._replay, weights, x, y, noise, vmapped=self.way == "vmap")


def surrogate_products(
    replay: Replay,
    observations: Sequence[Observation],
    seen: Trace,
    *,
    learning_rate: float = LEARNING_RATE,
    matched: Collection[str] | None = None,
    elements: Elements | None = None,
    units: Sequence[Mapping[str, float]] | None = None,
) -> GradientProducts:
    """`SurrogateProducts` in the fastest way that is exact for the model.

    Args:
        replay: The victim's loss at the weights that the clients received.
        observations: One for each victim, of the same problem.
        seen: A trace of the victim's model.
        learning_rate: Of the surrogate's position, 0 or more.
        matched: Names of the parameters that count; None for all.
        elements: Which elements of the update count, and how; None compares all, by inner products.
        units: Of each victim, by parameter name, what updates are divided by; None for 1.

    Raises:
        ValueError: If the model is not twice differentiable.
    """

    def build(way: str, replay: Replay, observations: Sequence[Observation]) -> GradientProducts:
        return SurrogateProducts(
            replay,
            observations,
            seen,
            way=way,
            learning_rate=learning_rate,
            matched=matched,
            elements=elements,
            units=None if units is None else units[: len(observations)],  # a probe looks at the first victim only
        )

    single = elements is not None or units is not None
    ways = ("vmap",) if single or why_not_factored(replay.victim.model, seen) else ("factored", "vmap")
    return fastest_exact(build, ways, replay, observations, seen)


class MixedLayers:
    """Exchanges the forward pass of plain layers for one with weights between those in the layer and other ones.

    A layer's output is linear in its weight and bias: at ``a w0 + (1 - a) wT`` it is ``a`` times the output at w0 plus
    ``1 - a`` times that at wT.

    Args:
        seen: A trace of the model, all of whose parameters belong to plain layers.
        one: The replay at w0.
        others: The replays at wT, for each victim.
        large: Whether convolutions are called for one victim after another.
    """

    def __init__(self, seen: Trace, one: Replay, others: Sequence[Replay], *, large: bool) -> None:
        layers = [run.module for run in seen.layers]
        with VictimLayers.of(seen, [one], large=large).installed():
            own: list[Callable[[Tensor], Tensor]] = [layer.forward for layer in layers]
        self._own = list(zip(layers, own, strict=True))
        self._others = VictimLayers.of(seen, others, large=large, every=True)

    def keep(self, victims: Sequence[int]) -> MixedLayers:
        """Those of some victims."""
        kept = copy(self)
        kept._others = self._others.keep(victims)
        return kept

    @contextmanager
    def installed(self, position: Tensor) -> Iterator[None]:
        """Let the layers run with the weights at ``position``, (victims, restarts), inside the block."""
        with self._others.installed():
            for layer, own in self._own:
                layer.__dict__["forward"] = _mixed(own, layer.forward, position)  # shadows the method of the class
            yield


def _mixed(
    own: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor], position: Tensor
) -> Callable[[Tensor], Tensor]:
    def forward(received: Tensor) -> Tensor:
        at_own, at_other = own(received), other(received)
        rows = position.to(at_own.dtype).flatten().repeat_interleave(len(at_own) // position.numel())
        return torch.lerp(at_other, at_own, rows.reshape(-1, *[1] * (at_own.ndim - 1)))

    return forward


class _Position:
    """``a`` of every candidate, which learns from the backward pass of whatever was computed with it."""

    def __init__(self, learning_rate: float) -> None:
        self._rate = learning_rate
        self._adam: Adam | None = None
        self.values: Tensor | None = None

    def of(self, candidates: Tensor) -> Tensor:
        """The present values, (victims, restarts); 1/2 when there are other candidates than before."""
        if self.values is None or self.values.shape != candidates.shape[:2]:
            self.values = torch.full_like(candidates[:, :, 0, 0, 0, 0].detach(), 0.5)
            self._adam = Adam(self.values)
        if not (self._rate and torch.is_grad_enabled() and candidates.requires_grad):
            return self.values
        tied: Tensor = _Tied.apply(candidates, self.values, self._learn)
        return tied

    def keep(self, victims: Sequence[int], restarts: Sequence[Sequence[int]] | None) -> _Position:
        """That of some candidates."""
        kept = copy(self)
        if self.values is not None and self._adam is not None:
            every = range(self.values.shape[1])
            cut = Cut(list(victims), [list(row) for row in restarts or [every] * len(victims)])
            kept.values, kept._adam = cut.take(self.values), copy(self._adam)
            kept._adam.keep(cut)
        return kept

    def _learn(self, derivative: Tensor) -> None:
        assert self._adam is not None
        assert self.values is not None
        # A candidate that diverged must not take its position, and with it Adam's memory, to NaN.
        direction = self._adam.direction(derivative.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))
        self.values = (self.values - self._rate * direction).clamp(0, 1)


class _Tied(torch.autograd.Function):
    """Hands values out as if they depended on the candidates, so that a backward pass to these brings derivatives."""

    @staticmethod
    def forward(ctx: Any, candidates: Tensor, values: Tensor, learn: Callable[[Tensor], None]) -> Tensor:
        """The values as they are."""
        ctx.learn, ctx.shape = learn, candidates.shape
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *derivatives: Tensor) -> tuple[Tensor, None, None]:
        """Learn from the derivative; the candidates' own is zero."""
        (derivative,) = derivatives
        ctx.learn(derivative.detach())
        return derivative.new_zeros(ctx.shape), None, None
