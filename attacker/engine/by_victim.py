"""Layers with weights of their own for every victim, so that observations of different rounds run in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attacker.engine.constants import constants_of
from attacker.engine.convolve import Convolve, Geometry, pads_first
from attacker.engine.factors import PlainLayer, padded
from attacker.engine.matmul import MatrixProduct, worth_it
from attacker.engine.norms import (
    NORM_LAYERS,
    NormLayer,
    Statistics,
    affine,
    normalised,
    runs_on_statistics,
    scaled,
)
from attacker.engine.products import Replay
from attacker.engine.shadowed import shadowed
from attacker.engine.trace import LayerRun, Trace

LAYERS = (nn.Linear, nn.Conv2d, *NORM_LAYERS)
"""Kinds of layers that can be given weights of each victim, and whose products are factored."""


class LayerWeights(NamedTuple):
    """What one layer needs for its forward pass.

    Attributes:
        weights: (victims, ...), or (1, ...) when the victims share them; None for a layer without.
        biases: As ``weights``.
        statistics: Running statistics of a normalisation layer that runs on them.
    """

    weights: Tensor | None
    biases: Tensor | None
    statistics: Statistics | None

    def keep(self, victims: Sequence[int]) -> LayerWeights:
        """Those of some of the victims, in the given order; what is shared stays."""
        chosen = list(victims)

        def pick(value: Tensor | None) -> Tensor | None:
            return value if value is None or len(value) == 1 else value[chosen]

        statistics = self.statistics
        if statistics is not None and len(statistics[0]) > 1:
            statistics = statistics[0][chosen], statistics[1][chosen]
        return LayerWeights(pick(self.weights), pick(self.biases), statistics)


class VictimLayers:
    """Exchanges the forward pass of layers for one that gives each victim its own weights.

    The flat batch of `attacker.engine.factored.FactoredProducts` holds the victims one after another, so that a Linear
    layer is a batched matrix product. For shared weights convolutions and batch norm on running statistics are
    exchanged too, whose second derivatives are cheaper here than in torch, and Linear layers where `MatrixProduct` is
    faster.

    Args:
        weights: For each layer to exchange, what it needs.
        together: Whether convolutions with weights of each victim are one call with victims as groups.
    """

    def __init__(self, weights: Mapping[PlainLayer | NormLayer, LayerWeights], *, together: bool) -> None:
        self._weights = dict(weights)
        self._together = together

    def keep(self, victims: Sequence[int]) -> VictimLayers:
        """The layers with the weights of some of the victims, in the given order."""
        kept = copy(self)
        kept._weights = {layer: one.keep(victims) for layer, one in self._weights.items()}
        return kept

    @classmethod
    def of(cls, seen: Trace, replays: Sequence[Replay], *, large: bool, every: bool = False) -> VictimLayers:
        """All layers for victims that bring their own weights; for one shared replay those that get cheaper.

        Args:
            seen: A trace of the model.
            replays: One for each victim, at its weights, or the same for all.
            large: Whether convolutions are called for one victim after another.
            every: All layers for a shared replay too.

        Raises:
            ValueError: If a layer of another kind has weights of each victim, or buffers besides running statistics
                differ.
        """
        layout = torch.channels_last if large else torch.contiguous_format
        return cls(_exchanged(seen, replays, layout, every=every), together=not large)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Let the layers run with the victims' weights inside the block; layers exchanged before stay as they are."""
        forwards: dict[nn.Module, Callable[[Tensor], Tensor]] = {
            layer: _forward(layer, weights, together=self._together) for layer, weights in self._weights.items()
        }
        with shadowed(forwards):
            yield


def _forward(layer: PlainLayer | NormLayer, own: LayerWeights, *, together: bool) -> Callable[[Tensor], Tensor]:
    """The layer as a function of its input (victims * images, ...)."""
    if isinstance(layer, NORM_LAYERS):
        return _norm(layer, own)
    assert own.weights is not None
    if isinstance(layer, nn.Conv2d):
        return _convolution(layer, own, together=together)
    if len(own.weights) == 1 and worth_it(own.weights):
        return _shared_linear(own.weights[0], None if own.biases is None else own.biases[0])
    transposed = own.weights.mT

    def linear(received: Tensor) -> Tensor:
        rows = received.reshape(len(transposed), -1, received.shape[-1])
        out = rows @ transposed if own.biases is None else torch.baddbmm(own.biases.unsqueeze(1), rows, transposed)
        return out.reshape(*received.shape[:-1], -1)

    return linear


def _shared_linear(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    def linear(received: Tensor) -> Tensor:
        out: Tensor = MatrixProduct.apply(received.reshape(-1, received.shape[-1]), weight, bias)
        return out.reshape(*received.shape[:-1], -1)

    return linear


def _convolution(layer: nn.Conv2d, own: LayerWeights, *, together: bool) -> Callable[[Tensor], Tensor]:
    geometry, pads = Geometry.of(layer), pads_first(layer)

    def convolve(images: Tensor) -> Tensor:
        whole = padded(layer, images) if pads else images
        out: Tensor = Convolve.apply(whole, own.weights, own.biases, geometry, together)
        return out

    return convolve


def _norm(layer: NormLayer, own: LayerWeights) -> Callable[[Tensor], Tensor]:
    if own.statistics is None:
        return lambda images: scaled(layer, normalised(layer, images, None), own.weights, own.biases)
    mean, variance = own.statistics
    scale = (variance + layer.eps).rsqrt()
    if own.weights is not None:
        scale = scale * own.weights
    shift = -mean * scale
    if own.biases is not None:
        shift = shift + own.biases
    return lambda images: affine(images, scale, shift)


def _exchanged(
    seen: Trace, replays: Sequence[Replay], layout: torch.memory_format, *, every: bool
) -> dict[PlainLayer | NormLayer, LayerWeights]:
    shared = not every and all(one is replays[0] for one in replays)
    exchanged: dict[PlainLayer | NormLayer, LayerWeights] = {}
    statistics: set[str] = set()
    for run in seen.layers:
        if not _is_plain(run.module):
            if shared:
                continue
            raise ValueError(f"{run.name} ({type(run.module).__name__}) cannot be given weights of each victim")
        statistics |= {join(run.name, name) for name, _ in run.module.named_buffers(recurse=False)}
        if shared and not _gets_cheaper(run.module):
            continue
        weights, biases = (
            _stacked(run, kind, replays[:1] if shared else replays, layout) for kind in ("weight", "bias")
        )
        assert isinstance(run.module, LAYERS)
        exchanged[run.module] = LayerWeights(weights, biases, running_statistics(run, replays))
    first = {name: value for name, value in replays[0].buffers.items() if name not in statistics}
    for one in replays:
        others = {name: value for name, value in one.buffers.items() if name not in statistics}
        if not _same_tensors(others, first):
            raise ValueError(
                "expected victims with equal buffers: all of them pass the model together; use the dense products"
            )
    return exchanged


def _gets_cheaper(layer: nn.Module) -> bool:
    """Whether the layer is worth exchanging where victims share its weights."""
    if isinstance(layer, nn.Linear):
        return worth_it(layer.weight)
    return isinstance(layer, nn.Conv2d) or runs_on_statistics(layer)


def _is_plain(module: nn.Module) -> bool:
    """Whether the layer is of a known kind, and not of a class derived from one, with weight and bias alone."""
    own = {name for name, _ in module.named_parameters(recurse=False)} | constants_of(module)
    return type(module) in LAYERS and own <= {"weight", "bias"}


def _stacked(run: LayerRun, kind: str, replays: Sequence[Replay], layout: torch.memory_format) -> Tensor | None:
    own = getattr(run.module, kind)
    if own is None:
        return None
    values = [{**one.buffers, **one.parameters}.get(join(run.name, kind), own).detach() for one in replays]
    return torch.stack([one.contiguous(memory_format=layout) if one.dim() == 4 else one for one in values])


def running_statistics(run: LayerRun, replays: Sequence[Replay]) -> Statistics | None:
    """Running statistics of the victims, once when they are equal."""
    if not runs_on_statistics(run.module):
        return None
    own = dict(run.module.named_buffers(recurse=False))

    def stack(kind: str) -> Tensor:
        found = [one.buffers.get(join(run.name, kind), own[kind]) for one in replays]
        alike = all(value is found[0] or torch.equal(value, found[0]) for value in found)
        return torch.stack(found[:1] if alike else found)

    mean, variance = stack("running_mean"), stack("running_var")
    victims = max(len(mean), len(variance))
    return mean.expand(victims, -1), variance.expand(victims, -1)


def join(module: str, parameter: str) -> str:
    """A parameter's name in the model, for its name in the module."""
    return f"{module}.{parameter}" if module else parameter


def _same_tensors(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
