"""Layers with weights of their own for every victim, so that observations of different rounds run in one pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from typing import Self

import torch
from torch import Tensor, nn

from attacker.gradients.ghost.direct_parameters import DirectParameters
from attacker.gradients.ghost.layer_kinds import (
    CompositeKind,
    Forward,
    join,
    kind_of,
    layer_runs,
    name_in_model,
    parts_of,
    plain_kind,
)
from attacker.gradients.ghost.patched_forward import shadowed
from attacker.gradients.replay import Replay
from attacker.gradients.trace import LayerRun, Trace

LayerWeights = Mapping[str, Tensor | None]
"""Parameters and buffers of one layer by name, (victims, ...), or (1, ...) when the victims share them."""


class ExchangedLayers(ABC):
    """Layers whose forward pass is exchanged while candidates pass the model."""

    @abstractmethod
    def installed(self, candidates: Tensor) -> AbstractContextManager[Mapping[str, Tensor]]:
        """Let the layers run inside the block as these candidates (victims, restarts, batch, ...) need it.

        Returns:
            The copies of direct parameters to run the model with; see `DirectParameters.copies`.
        """

    @abstractmethod
    def keep(self, victims: Sequence[int], restarts: Sequence[Sequence[int]] | None) -> Self:
        """The same for some of the candidates; see `GradientProducts.keep`."""


class VictimLayers(ExchangedLayers):
    """Exchanges the forward pass of layers for one that gives each victim its own weights.

    The flat batch of `FactoredProducts` holds the victims one after another, so that a Linear
    layer is a batched matrix product. For shared weights those are exchanged too whose second derivatives are cheaper
    here than in torch (`LayerKind.is_cheaper`).

    Args:
        weights: For each layer to exchange, what it needs.
        composites: Layers that run by their parts, and how.
        direct: Parameters that the model uses outside of layers.
        together: Whether convolutions with weights of each victim are one call with victims as groups.
    """

    def __init__(
        self,
        weights: Mapping[nn.Module, LayerWeights],
        composites: Mapping[nn.Module, Forward],
        direct: DirectParameters,
        *,
        together: bool,
    ) -> None:
        self._weights = dict(weights)
        self._composites = composites
        self._direct = direct
        self._together = together

    def keep(self, victims: Sequence[int], restarts: Sequence[Sequence[int]] | None) -> Self:
        """The layers with the weights of some of the victims, in the given order."""
        del restarts
        kept = copy(self)
        kept._weights = {layer: _of_some(weights, list(victims)) for layer, weights in self._weights.items()}
        kept._direct = self._direct.keep(victims)
        return kept

    @classmethod
    def of(cls, trace: Trace, replays: Sequence[Replay], *, large: bool, every: bool = False) -> VictimLayers:
        """All layers for victims that bring their own weights; for one shared replay those that get cheaper.

        Args:
            trace: A trace of the model.
            replays: One for each victim, at its weights, or the same for all.
            large: Whether convolutions are called for one victim after another.
            every: All layers for a shared replay too.

        Raises:
            ValueError: If a layer of another kind has weights of each victim, or buffers besides running statistics
                differ.
        """
        layout = torch.channels_last if large else torch.contiguous_format
        composites = {
            run.module: kind.forward(run.module, parts_of(run.module, kind))
            for run in trace.layers
            if isinstance(kind := kind_of(run.module), CompositeKind)
        }
        weights = _exchanged(layer_runs(trace), replays, layout, every=every)
        direct = DirectParameters(replays, replays[0].victim.model)
        return cls(weights, composites, direct, together=not large)

    @contextmanager
    def installed(self, candidates: Tensor) -> Iterator[Mapping[str, Tensor]]:
        """Every candidate of a victim has its weights."""
        with self.exchanged():
            yield self.copies(candidates)

    def copies(self, candidates: Tensor) -> dict[str, Tensor]:
        """Copies of direct parameters for all images of the candidates."""
        victims, restarts, batch = candidates.shape[:3]
        return self._direct.copies(victims, restarts * batch)

    def exchanged(self) -> AbstractContextManager[None]:
        """Let the layers run with the victims' weights inside the block; layers exchanged before stay as they are."""
        exchanged = {layer: self._forward(layer, weights) for layer, weights in self._weights.items()}
        return shadowed({**self._composites, **exchanged})

    def _forward(self, layer: nn.Module, weights: LayerWeights) -> Forward:
        kind = plain_kind(layer)
        assert kind is not None  # no other layer is exchanged
        return kind.forward(layer, weights, together=self._together)


def _of_some(weights: LayerWeights, victims: list[int]) -> LayerWeights:
    """Weights of some of the victims, in the given order; what is shared stays."""
    return {name: value if value is None or len(value) == 1 else value[victims] for name, value in weights.items()}


def _exchanged(
    runs: Sequence[LayerRun], replays: Sequence[Replay], layout: torch.memory_format, *, every: bool
) -> dict[nn.Module, LayerWeights]:
    shared = not every and all(replay is replays[0] for replay in replays)
    exchanged: dict[nn.Module, LayerWeights] = {}
    statistics: set[str] = set()
    for run in runs:
        kind = plain_kind(run.module)
        if kind is None:
            if shared or kind_of(run.module) is None:  # its parameters are direct ones
                continue
            raise ValueError(f"{run.name} ({type(run.module).__name__}) cannot be given weights of each victim")
        statistics |= {join(run.name, name) for name, _ in run.module.named_buffers(recurse=False)}
        if shared and not kind.is_cheaper(run.module):
            continue
        weights = {name: _stacked(run, name, replays[:1] if shared else replays, layout) for name in kind.parameters}
        exchanged[run.module] = weights | victims_buffers(run, replays)
    first = {name: value for name, value in replays[0].buffers.items() if name not in statistics}
    for victim_replay in replays:
        others = {name: value for name, value in victim_replay.buffers.items() if name not in statistics}
        if not _same_tensors(others, first):
            raise ValueError(
                "expected victims with equal buffers: all of them pass the model together; use the dense products"
            )
    return exchanged


def _stacked(run: LayerRun, name: str, replays: Sequence[Replay], layout: torch.memory_format) -> Tensor | None:
    parameter = getattr(run.module, name, None)
    if parameter is None:
        return None
    values = [
        {**replay.buffers, **replay.parameters}.get(name_in_model(run, name), parameter).detach() for replay in replays
    ]
    return torch.stack([value.contiguous(memory_format=layout) if value.dim() == 4 else value for value in values])


def victims_buffers(run: LayerRun, replays: Sequence[Replay]) -> dict[str, Tensor]:
    """Buffers that the layer computes with, (victims, ...) by name, or (1, ...) where they are equal."""
    kind = plain_kind(run.module)
    names = () if kind is None else kind.buffers(run.module)
    buffers = dict(run.module.named_buffers(recurse=False))

    def stack(name: str) -> Tensor:
        values = [replay.buffers.get(join(run.name, name), buffers[name]) for replay in replays]
        alike = all(value is values[0] or torch.equal(value, values[0]) for value in values)
        return torch.stack(values[:1] if alike else values)

    return {name: stack(name) for name in names}


def _same_tensors(tensors: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return tensors.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in tensors.items())
