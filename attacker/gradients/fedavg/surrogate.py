"""Replay of local training by one gradient at surrogate weights between those sent and those received back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from attacker.gradients.base import GradientProducts, Products
from attacker.gradients.distances import Elements
from attacker.gradients.fedavg.explicit_update import (
    ClientUpdate,
    FormedProducts,
    ObservedUpdates,
    fastest_of,
    form_each,
    targets_of,
    weight_gradient,
)
from attacker.gradients.ghost.direct_parameters import mixed
from attacker.gradients.ghost.ghost import FactoredProducts, serves_one_by_one, why_not_factored
from attacker.gradients.ghost.layer_kinds import layer_runs, plain_kind
from attacker.gradients.ghost.weights_by_victim import ExchangedLayers, VictimLayers
from attacker.gradients.replay import Replay
from attacker.gradients.select import possible
from attacker.gradients.trace import Trace
from attacker.optim.active_set import Cut
from attacker.optim.adam import Adam
from fl_precode.observation import Observation

LEARNING_RATE = 1e-3
"""Adam's step for the surrogate's position, which lies in [0, 1]."""


class Surrogate(ClientUpdate):
    """Gradient at the weights ``a w0 + (1 - a) wT`` of every candidate, whose ``a`` learns from its backward pass.

    Args:
        replay: The victim's loss at the weights w0 that the clients received.
        observations: One for each victim; their updates lead to wT.
        position: ``a`` of every candidate.
    """

    def __init__(self, replay: Replay, observations: Sequence[Observation], position: Position) -> None:
        self.position = position
        self._replay = replay
        self._updates = {name: torch.stack([observation.update[name] for observation in observations])
                         for name in observations[0].update}  # fmt: skip

    def form(self, candidates: Tensor, labels: Tensor, noise: Sequence[Tensor], *, vmapped: bool) -> dict[str, Tensor]:
        """See `ClientUpdate.form`."""
        restarts = candidates.shape[1]
        back = {
            name: value.unsqueeze(1).expand(-1, restarts, *value.shape[1:]) for name, value in self._updates.items()
        }
        gradient = partial(self._gradient, vmapped=vmapped)
        position = self.position.of(candidates)
        return form_each(gradient, candidates, labels, position, back, list(noise), vmapped=vmapped)

    def keep(self, victims: Sequence[int], restarts: Sequence[Sequence[int]] | None) -> Self:
        """Some of the candidates, whose ``a`` goes on where it is."""
        kept, chosen = copy(self), list(victims)
        kept.position = self.position.keep(chosen, restarts)
        kept._updates = {name: value[chosen] for name, value in self._updates.items()}
        return kept

    def _gradient(
        self,
        x: Tensor,
        y: Tensor,
        position: Tensor,
        update: Mapping[str, Tensor],
        noise: Sequence[Tensor],
        *,
        vmapped: bool,
    ) -> dict[str, Tensor]:
        """Gradient of one candidate (images, ...) at its surrogate weights."""
        sent = self._replay.parameters
        weights = {name: value.detach() + (1 - position).to(value.dtype) * update[name] for name, value in sent.items()}
        return weight_gradient(self._replay, weights, x, y, noise, vmapped=vmapped)


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
        learning_rate: Learning rate of the position ``a``; 0 keeps it at 1/2, for searches that measure a point twice.
        matched: Names of the parameters that count; None for all.
        elements: Which elements of the update count, and how; None compares all, by inner products. Not "factored".
        units: Units of each victim, by parameter name, what updates are divided by; None for 1. Not "factored".

    Attributes:
        way: As given.
    """

    def __init__(
        self,
        replay: Replay,
        observations: Sequence[Observation],
        trace: Trace,
        *,
        way: str,
        learning_rate: float = LEARNING_RATE,
        matched: Collection[str] | None = None,
        elements: Elements | None = None,
        units: Sequence[Mapping[str, float]] | None = None,
    ) -> None:
        self.way = way
        self._products: FactoredProducts | FormedProducts
        position = Position(learning_rate)
        if way == "factored":
            targets, batch_size = targets_of(observations, None), observations[0].batch_size or 1
            layers = MixedLayers(trace, replay, observations, position, large=serves_one_by_one(trace, batch_size))
            self._products = FactoredProducts(
                replay, targets, trace, batch_size=batch_size, matched=matched, layers=layers
            )
            return
        observed = ObservedUpdates(targets_of(observations, elements), matched, elements, units)
        self._products = FormedProducts(Surrogate(replay, observations, position), observed, vmapped=way == "vmap")

    @property
    def position(self) -> Tensor | None:
        """``a`` of every candidate, (victims, restarts) in [0, 1]; None before the first call."""
        products = self._products
        holder = products.layers if isinstance(products, FactoredProducts) else products.update
        assert isinstance(holder, MixedLayers | Surrogate)
        return holder.position.values

    def __call__(self, candidates: Tensor, labels: Tensor, noise: Sequence[Tensor] = ()) -> Products:
        """Products for every candidate, ``batch`` being all images of the client; see `GradientProducts.__call__`."""
        return self._products(candidates, labels, noise)

    def keep(self, victims: Sequence[int], restarts: Sequence[Sequence[int]] | None = None) -> Self:
        """Products for some of the candidates, whose ``a`` goes on where it is; see `GradientProducts.keep`."""
        kept = copy(self)
        kept._products = self._products.keep(victims, restarts)
        return kept


def surrogate_products(
    replay: Replay,
    observations: Sequence[Observation],
    trace: Trace,
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
        trace: A trace of the victim's model.
        learning_rate: Learning rate of the surrogate's position, 0 or more.
        matched: Names of the parameters that count; None for all.
        elements: Which elements of the update count, and how; None compares all, by inner products.
        units: Units of each victim, by parameter name, what updates are divided by; None for 1.

    Raises:
        ValueError: If the model is not twice differentiable.
    """

    def build(way: str, replay: Replay, observations: Sequence[Observation]) -> GradientProducts:
        return SurrogateProducts(
            replay,
            observations,
            trace,
            way=way,
            learning_rate=learning_rate,
            matched=matched,
            elements=elements,
            units=None if units is None else units[: len(observations)],  # a probe looks at the first victim only
        )

    names = None if matched is None else frozenset(matched)
    single = elements is not None or units is not None
    ways: dict[str, Callable[[], str | None]] = {"vmap": possible}
    if not single:
        ways = {"factored": lambda: why_not_factored(replay.victim.model, trace), **ways}
    way = fastest_of(build, ways, replay, observations, trace, decided_by=("surrogate", elements, units is None, names))
    return build(way, replay, observations)


class MixedLayers(ExchangedLayers):
    """Exchanges the forward pass of plain layers for one with weights between w0 and wT.

    A layer's output is linear in its weight and bias: at ``a w0 + (1 - a) wT`` it is ``a`` times the output at w0 plus
    ``1 - a`` times that at wT.

    Args:
        seen: A trace of the model, all of whose parameters belong to plain layers.
        replay: The replay at w0.
        observations: One for each victim; their updates lead to wT.
        position: ``a`` of every candidate.
        large: Whether convolutions are called for one victim after another.
    """

    def __init__(
        self, trace: Trace, replay: Replay, observations: Sequence[Observation], position: Position, *, large: bool
    ) -> None:
        self.position = position
        layers = [run.module for run in layer_runs(trace) if plain_kind(run.module)]
        self._sent = VictimLayers.of(trace, [replay], large=large)
        with self._sent.exchanged():
            sent_forwards: list[Callable[[Tensor], Tensor]] = [layer.forward for layer in layers]
        self._own = list(zip(layers, sent_forwards, strict=True))
        ends = [
            Replay(
                replay.victim, {k: w + observation.update[k] for k, w in observation.parameters.items()}, replay.buffers
            )
            for observation in observations
        ]
        self._others = VictimLayers.of(trace, ends, large=large, every=True)

    def keep(self, victims: Sequence[int], restarts: Sequence[Sequence[int]] | None) -> Self:
        """Those of some candidates."""
        kept = copy(self)
        kept.position = self.position.keep(victims, restarts)
        kept._others = self._others.keep(victims, restarts)
        return kept

    @contextmanager
    def installed(self, candidates: Tensor) -> Iterator[Mapping[str, Tensor]]:
        """Let the layers run with the weights of each candidate inside the block."""
        position = self.position.of(candidates)
        with self._others.exchanged():
            for layer, sent in self._own:
                layer.__dict__["forward"] = _mixed(sent, layer.forward, position)  # shadows the method of the class
            with torch.enable_grad():
                copies = mixed(self._sent.copies(candidates), self._others.copies(candidates), position)
            yield copies


def _mixed(
    sent: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor], position: Tensor
) -> Callable[[Tensor], Tensor]:
    def forward(received: Tensor) -> Tensor:
        at_own, at_other = sent(received), other(received)
        rows = position.to(at_own.dtype).flatten().repeat_interleave(len(at_own) // position.numel())
        return torch.lerp(at_other, at_own, rows.reshape(-1, *[1] * (at_own.ndim - 1)))

    return forward


class Position:
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

    def keep(self, victims: Sequence[int], restarts: Sequence[Sequence[int]] | None) -> Position:
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
