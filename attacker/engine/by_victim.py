"""Plain layers with weights of their own for every victim, so that observations of different rounds run in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacker.engine.factors import PlainLayer, padded


class VictimLayers:
    """Exchanges the forward pass of a model's plain layers for one that gives each victim its own weights.

    The flat batch of `attacker.engine.factored.FactoredProducts` holds the victims one after another, so that a Linear
    layer is a batched matrix product and a convolution a grouped one.

    Args:
        layers: The layers by name.
        parameters: All weights, by parameter name, one mapping for each victim.
    """

    def __init__(self, layers: Mapping[str, PlainLayer], parameters: Sequence[Mapping[str, Tensor]]) -> None:
        self._weights: list[tuple[PlainLayer, Tensor, Tensor | None]] = []
        for name, layer in layers.items():
            prefix = f"{name}." if name else ""
            weights = torch.stack([one[f"{prefix}weight"].detach() for one in parameters])
            biases = None
            if layer.bias is not None:
                biases = torch.stack([one[f"{prefix}bias"].detach() for one in parameters])
            self._weights.append((layer, weights, biases))

    def keep(self, victims: Sequence[int]) -> VictimLayers:
        """The layers with the weights of some of the victims, in the given order."""
        kept, chosen = copy(self), list(victims)
        kept._weights = [
            (layer, weights[chosen], None if biases is None else biases[chosen])
            for layer, weights, biases in self._weights
        ]
        return kept

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Let the layers run with the victims' weights inside the block."""
        try:
            for layer, weights, biases in self._weights:
                layer.__dict__["forward"] = _forward(layer, weights, biases)  # shadows the method of the class
            yield
        finally:
            for layer, _, _ in self._weights:
                layer.__dict__.pop("forward", None)


def _forward(layer: PlainLayer, weights: Tensor, biases: Tensor | None) -> Callable[[Tensor], Tensor]:
    """The layer as a function of its input (victims * images, ...), for stacked weights (victims, out, ...)."""
    if isinstance(layer, nn.Conv2d):
        convolution = layer
        return lambda images: _convolve(convolution, images, weights, biases)
    transposed = weights.mT

    def linear(received: Tensor) -> Tensor:
        rows = received.reshape(len(weights), -1, received.shape[-1])
        out = rows @ transposed if biases is None else torch.baddbmm(biases.unsqueeze(1), rows, transposed)
        return out.reshape(*received.shape[:-1], -1)

    return linear


def _convolve(layer: nn.Conv2d, images: Tensor, weights: Tensor, biases: Tensor | None) -> Tensor:
    """Victims as groups of one convolution."""
    victims = len(weights)
    whole = padded(layer, images)
    # (victims * images, c, h, w) to (images, victims * c, h, w): groups lie on the channel axis.
    side_by_side = whole.reshape(victims, -1, *whole.shape[1:]).transpose(0, 1).flatten(1, 2)
    out = F.conv2d(
        side_by_side,
        weights.flatten(0, 1),
        None if biases is None else biases.flatten(),
        layer.stride,
        0,
        layer.dilation,
        groups=victims * layer.groups,
    )
    return out.reshape(len(out), victims, -1, *out.shape[2:]).transpose(0, 1).flatten(0, 1)
