"""Leaked quantities of the layers of a chain, and the outcome of solving each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """What became of one linear layer.

    Attributes:
        name: Name of the layer.
        unknowns: Numbers that enter it.
        rank_bound: The most that its equations can determine of them, (v,): rows that are known count.
        residuals: (v,), ``|A x - b| / |b|`` of the equations that are known.
        clipped: (v,), outputs that were too near the end of the activation's range to tell what came in.
        converged: (v,), whether the solver reached its tolerance.
    """

    name: str
    unknowns: int
    rank_bound: Tensor
    residuals: Tensor
    clipped: Tensor
    converged: Tensor

    @property
    def deficient(self) -> Tensor:
        """(v,), whether there are fewer equations than unknowns, so that the layer's input is a guess."""
        return self.rank_bound < self.unknowns


@dataclass(frozen=True, kw_only=True)
class Leaked:
    """Weights and gradients of v victims, stacked, and where the chain of layers is entered from behind.

    Attributes:
        parameters: By name, (v, ...), or (1, ...) where all victims share them; float64.
        gradients: By name, (v, ...), of the parameters: constants have none.
        buffers: By name, as ``parameters``; constants are among them.
        features: (v, ...), what left the last layer of the chain.
        gradient: (v, ...), of the loss with respect to it.
    """

    parameters: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    features: Tensor
    gradient: Tensor

    def value(self, name: str) -> Tensor:
        """A parameter, or a constant that stands among the buffers."""
        return self.parameters[name] if name in self.parameters else self.buffers[name]
