"""The registry of layers whose gradients `FactoredProducts` multiplies without forming them.

A kind of layer is registered by a class, in the manner of Opacus' grad samplers:

    @register_layer(LayerScale)
    class LayerScaleKind(LayerKind[LayerScale]):
        parameters = ("gamma",)

        def gradients(self, layer, received, delta):
            return {"gamma": (received * delta).reshape(len(delta), -1, delta.shape[-1]).sum(1)}

What a kind says is compared with plain double backward before an attack uses it (`attacker.gradients.select`).
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.weak import WeakIdKeyDictionary

from attacker.gradients.trace import LayerRun, Trace
from attacker.gradients.uncompared_parameters import constants_of

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
        kept.vectors = tuple(vector[list(victims)] for vector in self.vectors)
        return kept


class WeightChange(ABC):
    """How the weights of a layer moved for every candidate, by gradients that its images gave in earlier steps."""

    @abstractmethod
    def moved(self, received: Tensor, delta: Tensor) -> Self:
        """The same after one more step.

        Args:
            received: The layer's input in the step, (candidates * images, ...).
            delta: Gradient of each candidate's loss with respect to the layer's output, likewise.
        """

    @abstractmethod
    def __call__(self, received: Tensor) -> Tensor:
        """The layer's output for the sum of the gradients in place of its weights; bias included.

        Args:
            received: The layer's input, (candidates * images, ...).
        """


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
    """Layers of one kind with each victim's weights, and their gradients.

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
        """Reason why the gradients of a layer with an output of this shape do not follow, or None when they do."""
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

    def forward(self, layer: Layer, tensors: Mapping[str, Tensor | None], *, together: bool) -> Forward:
        """The layer as a function of its input (victims * images, ...), with the weights of each victim.

        Args:
            layer: The layer.
            tensors: Parameters and `buffers` by name, (victims, ...), or (1, ...) where the victims share them.
            together: Whether one library call may serve all victims.
        """
        del together
        as_written = _AsWritten(layer)
        victims = max((len(value) for value in tensors.values() if value is not None), default=1)

        def every(received: Tensor) -> Tensor:
            outputs = []
            for v, images in enumerate(received.chunk(victims)):
                state = {f"layer.{name}": value[v % len(value)] for name, value in tensors.items() if value is not None}
                outputs.append(functional_call(as_written, state, (images,)))
            return torch.cat(outputs)

        return every

    def change(self, layer: Layer, candidates: int) -> WeightChange | None:
        """No change so far of the layer's weights in local training; None where it cannot be told from factors.

        Args:
            layer: The layer.
            candidates: How many there are.
        """
        del layer, candidates
        return None

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
        self.vectors = tuple(torch.stack([gradient.flatten() for gradient in each]) for each in gradients.values())

    def __call__(self, received: Tensor, delta: Tensor, victims: int, restarts: int) -> LayerShare:
        """Every parameter that counts; see `LayerProducts.__call__`."""
        sampled = self._sample(received, delta)
        return LayerShare(
            [sampled[name].reshape(victims, restarts, -1, target.shape[1]).sum(2)
             for name, target in zip(self._names, self.vectors, strict=True)],
            None,
        )  # fmt: skip


class LinearPart(nn.Module):
    """A Linear layer whose weight and bias are parameters of another module, whatever these are at the moment.

    Args:
        owner: The module; it is not kept alive.
        weight: Name of the weight in the module.
        bias: Name of the bias.

    Attributes:
        names: Names in the module, by "weight" and "bias".
    """

    def __init__(self, owner: nn.Module, *, weight: str, bias: str) -> None:
        super().__init__()
        self.names = {"weight": weight, "bias": bias}
        self._owner = weakref.ref(owner)

    @property
    def weight(self) -> Tensor:
        """(out, in)."""
        weight: Tensor = attrgetter(self.names["weight"])(self._owner())
        return weight

    @property
    def bias(self) -> Tensor | None:
        """(out,), or None."""
        bias: Tensor | None = attrgetter(self.names["bias"])(self._owner())
        return bias

    def forward(self, received: Tensor) -> Tensor:
        """Rows times the matrix."""
        return F.linear(received, self.weight, self.bias)


class CompositeKind(ABC, Generic[Layer]):
    """Computation of layers of one kind from Linear parts, which own all parameters of the layer."""

    def why_not(self, layer: Layer) -> str | None:
        """Reason why this layer cannot be computed so, or None when it can."""
        del layer
        return None

    @abstractmethod
    def parts(self, layer: Layer) -> Mapping[str, LinearPart]:
        """The parts by name, in order of execution."""

    @abstractmethod
    def inputs(self, layer: Layer, received: Tensor) -> Tensor:
        """Shapes (images, rows, ...) of the parts' inputs from the layer's input."""

    @abstractmethod
    def forward(self, layer: Layer, parts: Mapping[str, LinearPart]) -> Forward:
        """The layer as a function of its arguments, which runs each of its parts once, as a module."""


_KINDS: dict[type[nn.Module] | str, LayerKind[Any] | CompositeKind[Any]] = {}
_PARTS: MutableMapping[nn.Module, Mapping[str, LinearPart]] = WeakIdKeyDictionary(ref_type=weakref.ref)
"""Parts of composite layers, made once."""

Kind = TypeVar("Kind", bound=type[LayerKind[Any]] | type[CompositeKind[Any]])


def register_layer(*types: type[nn.Module] | str) -> Callable[[Kind], Kind]:
    """Register a class as the kind of these layers. Classes derived from them are layers of another kind.

    Args:
        types: Classes of layers, or their full names ("package.module.Class") where the package may not be installed.

    Raises:
        ValueError: If one of the types has a kind already.
    """
    taken = [
        layer_type if isinstance(layer_type, str) else layer_type.__qualname__
        for layer_type in types
        if layer_type in _KINDS
    ]
    if taken:
        raise ValueError(f"expected layers without a kind, got {', '.join(taken)}, registered already")

    def register(kind: Kind) -> Kind:
        _KINDS.update(dict.fromkeys(types, kind()))
        return kind

    return register


def kind_of(layer: nn.Module) -> LayerKind[Any] | CompositeKind[Any] | None:
    """The kind of the layer, None when its class is not registered."""
    layer_type = type(layer)
    return _KINDS.get(layer_type) or _KINDS.get(f"{layer_type.__module__}.{layer_type.__qualname__}")


def layer_kind(layer: nn.Module) -> LayerKind[Any] | None:
    """The kind of a layer that is not composed of others; None for those and for all of no kind."""
    kind = kind_of(layer)
    return kind if isinstance(kind, LayerKind) else None


def plain_kind(layer: nn.Module) -> LayerKind[Any] | None:
    """The kind of a layer that has no parameters or constants besides those of its kind; None for others."""
    kind = layer_kind(layer)
    names = {name for name, _ in layer.named_parameters(recurse=False)} | constants_of(layer)
    return kind if kind is not None and names <= set(kind.parameters) else None


def parts_of(layer: nn.Module, kind: CompositeKind[Any]) -> Mapping[str, LinearPart]:
    """The parts of a composite layer, always the same ones."""
    if layer not in _PARTS:
        _PARTS[layer] = kind.parts(layer)
    return _PARTS[layer]


def covered(model: nn.Module) -> frozenset[str]:
    """Names of the modules inside of composite layers, whose parameters belong to these."""
    composites = [name for name, module in model.named_modules() if isinstance(kind_of(module), CompositeKind)]
    return frozenset(
        name
        for name, _ in model.named_modules()
        if any(name.startswith(f"{composite}." if composite else "") for composite in composites)
    ) - frozenset(composites)


def layer_runs(trace: Trace) -> list[LayerRun]:
    """Layers in order of execution, each composite one in its parts, under the names of these."""
    runs = []
    for run in trace.layers:
        kind = kind_of(run.module)
        if not isinstance(kind, CompositeKind) or run.inputs is None:
            runs.append(run)
            continue
        inputs = kind.inputs(run.module, run.inputs)
        runs += [
            replace(run, name=join(run.name, name), module=part, inputs=inputs)
            for name, part in parts_of(run.module, kind).items()
        ]
    return runs


def join(module: str, parameter: str) -> str:
    """A parameter's name in the model, for its name in the module."""
    return f"{module}.{parameter}" if module else parameter


def name_in_model(run: LayerRun, parameter: str) -> str:
    """A parameter's name in the model, for its name in the layer or the part that ran."""
    if isinstance(run.module, LinearPart):
        return join(run.name.rpartition(".")[0], run.module.names[parameter])
    return join(run.name, parameter)
