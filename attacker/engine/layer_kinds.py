"""The registry of layers whose gradients `FactoredProducts` multiplies without forming them.

A kind of layer is registered by a class, in the manner of Opacus' grad samplers:

    @register_layer(LayerScale)
    class LayerScaleKind(LayerKind[LayerScale]):
        parameters = ("gamma",)

        def gradients(self, layer, received, delta):
            return {"gamma": (received * delta).flatten(1, -2).sum(1)}

What a kind says is compared with plain double backward before an attack uses it (`attacker.engine.choose`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from attacker.engine.constants import constants_of

Layer = TypeVar("Layer", bound=nn.Module)
Forward = Callable[..., Any]
"""What a layer computes instead of its own forward pass."""


class LayerShare(NamedTuple):
    """One layer's share.

    Attributes:
        vectors: Gradients for `LayerProducts.vectors`, (victims, restarts, numbers) each; they are small, and those of
            all layers are multiplied together.
        products: Inner products and squares over the other parameters, (victims, restarts) each, in float64; None when
            no other counts.
    """

    vectors: Sequence[Tensor]
    products: tuple[Tensor, Tensor] | None


class LayerProducts(ABC):
    """What one layer adds to the inner products and squares of all candidates.

    Attributes:
        vectors: Observed gradients of the layer's parameters that are vectors, (victims, numbers) each.
    """

    vectors: tuple[Tensor, ...] = ()

    @abstractmethod
    def __call__(self, received: Tensor, delta: Tensor, victims: int, restarts: int) -> LayerShare:
        """The layer's share for every candidate.

        Args:
            received: The layer's input for the flat batch, (victims * restarts * batch, ...).
            delta: Gradient of the loss with respect to the layer's output, (victims * restarts * batch, ...).
            victims: Number of victims.
            restarts: Number of restarts.
        """

    def keep(self, victims: Sequence[int]) -> Self:
        """The same for some of the victims, in the given order."""
        kept = copy(self)
        kept.vectors = tuple(one[list(victims)] for one in self.vectors)
        return kept


@dataclass(frozen=True, kw_only=True)
class ObservedLayer:
    """What the products of one layer are made from.

    Attributes:
        gradients: Observed gradients by name of the layer's parameter, one for each victim; only those that count.
        buffers: `LayerKind.buffers` of the victims, (victims, ...) each, or (1, ...) where all victims share them.
        inputs: What the layer received when the model was traced, (images, ...).
        batch_size: Images of one candidate.
        large: Whether candidates are served by library calls of their own, however many they are.
        kept: Whether only elements count whose observed gradient is not zero.
    """

    gradients: Mapping[str, Sequence[Tensor]]
    buffers: Mapping[str, Tensor]
    inputs: Tensor
    batch_size: int
    large: bool
    kept: bool


class LayerKind(Generic[Layer]):
    """How layers of one kind run with each victim's weights, and what their gradients are.

    `gradients` is enough. Those kinds that are cheaper without the gradient of every image override `products`, and
    `forward` where the victims' weights can be used in one call.

    Attributes:
        parameters: Names of the parameters and constants that such a layer may have.
    """

    parameters: ClassVar[tuple[str, ...]] = ("weight", "bias")

    def gradients(self, layer: Layer, received: Tensor, delta: Tensor) -> Mapping[str, Tensor]:
        """Gradient of every parameter for every image, (images, ...) by name, written in differentiable operations.

        Args:
            layer: The layer. Its weights may be those of another victim: compute with ``received`` and ``delta``.
            received: Its input, (images, ...).
            delta: Gradient of the loss with respect to its output, (images, ...).
        """
        raise NotImplementedError(f"{type(self).__name__} says no gradients of {type(layer).__name__}")

    def buffers(self, layer: Layer) -> tuple[str, ...]:
        """Names of the buffers that the layer computes with in its present mode."""
        del layer
        return ()

    def why_not(self, layer: Layer, output_shape: tuple[int, ...] | None) -> str | None:
        """Why the gradients of a layer that gave an output of this shape do not follow, or None when they do."""
        del layer, output_shape
        return None

    def is_cheaper(self, layer: Layer) -> bool:
        """Whether `forward` is cheaper than the layer's own forward pass when all victims share its weights."""
        del layer
        return False

    def is_large(self, layer: Layer, inputs: Tensor, batch_size: int) -> bool:
        """Whether candidates are better served one by one, with channels last."""
        del layer, inputs, batch_size
        return False

    def forward(self, layer: Layer, own: Mapping[str, Tensor | None], *, together: bool) -> Forward:
        """The layer as a function of its input (victims * images, ...), with the weights of each victim.

        Args:
            layer: The layer.
            own: Parameters and `buffers` by name, (victims, ...), or (1, ...) where the victims share them.
            together: Whether one library call may serve all victims.
        """
        del together
        as_written = _AsWritten(layer)
        victims = max((len(value) for value in own.values() if value is not None), default=1)

        def every(received: Tensor) -> Tensor:
            outputs = []
            for v, images in enumerate(received.chunk(victims)):
                state = {f"layer.{name}": value[v % len(value)] for name, value in own.items() if value is not None}
                outputs.append(functional_call(as_written, state, (images,)))
            return torch.cat(outputs)

        return every

    def products(self, layer: Layer, observed: ObservedLayer) -> LayerProducts:
        """The layer's share of the inner products."""
        return SampledProducts(self, layer, observed.gradients)


class _AsWritten(nn.Module):
    """Runs a layer by the method of its class, whatever it was exchanged for."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, received: Tensor) -> Any:
        return type(self.layer).forward(self.layer, received)


class SampledProducts(LayerProducts):
    """A layer's share from the gradient of every image, for parameters that are small beside the images.

    Args:
        kind: Says the gradients.
        layer: The layer.
        gradients: Observed gradients by name of the parameter, one for each victim; those that count.
    """

    def __init__(self, kind: LayerKind[Layer], layer: Layer, gradients: Mapping[str, Sequence[Tensor]]) -> None:
        self._sample: Callable[[Tensor, Tensor], Mapping[str, Tensor]] = lambda received, delta: kind.gradients(
            layer, received, delta
        )
        self._names = list(gradients)
        self.vectors = tuple(torch.stack([one.flatten() for one in each]) for each in gradients.values())

    def __call__(self, received: Tensor, delta: Tensor, victims: int, restarts: int) -> LayerShare:
        """Every parameter that counts; see `LayerProducts.__call__`."""
        sampled = self._sample(received, delta)
        return LayerShare(
            [sampled[name].reshape(victims, restarts, -1, target.shape[1]).sum(2)
             for name, target in zip(self._names, self.vectors, strict=True)],
            None,
        )  # fmt: skip


_KINDS: dict[type[nn.Module] | str, LayerKind[Any]] = {}

Kind = TypeVar("Kind", bound=type[LayerKind[Any]])


def register_layer(*types: type[nn.Module] | str) -> Callable[[Kind], Kind]:
    """Register a class as the kind of these layers. Classes derived from them are layers of another kind.

    Args:
        types: Classes of layers, or their full names ("package.module.Class") where the package may not be installed.

    Raises:
        ValueError: If one of the types has a kind already.
    """
    taken = [one if isinstance(one, str) else one.__qualname__ for one in types if one in _KINDS]
    if taken:
        raise ValueError(f"expected layers without a kind, got {', '.join(taken)}, registered already")

    def register(kind: Kind) -> Kind:
        _KINDS.update(dict.fromkeys(types, kind()))
        return kind

    return register


def kind_of(layer: nn.Module) -> LayerKind[Any] | None:
    """The kind of the layer, None when its class is not registered."""
    own = type(layer)
    return _KINDS.get(own) or _KINDS.get(f"{own.__module__}.{own.__qualname__}")


def plain_kind(layer: nn.Module) -> LayerKind[Any] | None:
    """The kind of a layer that has no parameters or constants besides those of its kind; None for others."""
    kind = kind_of(layer)
    own = {name for name, _ in layer.named_parameters(recurse=False)} | constants_of(layer)
    return kind if kind is not None and own <= set(kind.parameters) else None
