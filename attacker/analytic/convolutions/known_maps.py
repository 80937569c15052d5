"""A model that is run with some of its maps known: what follows from them, values and gradients, is as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from attacker.analytic.linear_systems import Patches
from attacker.gradients.replay import Replay
from attacker.gradients.trace import KeptForModels
from attacker.gradients.uncompared_parameters import owns, reference
from attacker.victim import Victim
from fl_precode.randomness.random_layers import sample_noise

_RELUS: Final = frozenset({F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_})
_POOLS: Final = frozenset({F.max_pool2d, torch.max_pool2d})

_MAPS: Final[KeptForModels[MapsOfModel]] = KeptForModels(4)


@dataclass(frozen=True, kw_only=True)
class FedConvolution:
    """A convolution that runs once, on what a ReLU or a max pooling returned.

    Attributes:
        name: Module name as in ``named_modules``.
        patches: How it cuts its input.
        map: Number of this input among the model's maps.
    """

    name: str
    patches: Patches
    map: int

    @property
    def weight(self) -> str:
        """Name of its weight."""
        return f"{self.name}.weight"


@dataclass(frozen=True, kw_only=True)
class MapsOfModel:
    """What ReLUs and max poolings return, numbered in order of execution.

    Attributes:
        relus: Numbers of the maps that a ReLU returned.
        convolutions: Those that are fed by them, in order of execution.
        norms: Root mean square of each map on two random images.
    """

    relus: frozenset[int]
    convolutions: tuple[FedConvolution, ...]
    norms: tuple[float, ...]

    def fed_by(self, number: int) -> list[FedConvolution]:
        """The convolutions that one map enters."""
        return [one for one in self.convolutions if one.map == number]


def maps_of(victim: Victim) -> MapsOfModel:
    """The maps of a model, by one run on two random images; kept while the model does not change."""
    return _MAPS.get(victim.model, (victim.inputs.shape,), lambda: _found(victim))


def _found(victim: Victim) -> MapsOfModel:
    like = reference(victim.model)
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn((2, *victim.inputs.shape), generator=generator, dtype=like.dtype).to(like.device)
    mode, calls = _Numbered({}), []

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            received = arguments[0] if arguments else None
            calls.append((name, module, received, mode.number_of(received)))

        return hook

    modules = [(name, module) for name, module in victim.model.named_modules() if type(module) is nn.Conv2d]
    handles = [module.register_forward_pre_hook(note(name)) for name, module in modules]
    noise = torch.Generator(like.device).manual_seed(0)
    try:
        with torch.no_grad(), sample_noise(generator=noise), mode:
            victim.model(probe)
    finally:
        for handle in handles:
            handle.remove()
    names = [name for name, *_ in calls]
    fed = []
    for name, module, received, number in calls:
        if number is None or received is None or names.count(name) > 1 or not owns(module, "weight"):
            continue
        if not isinstance(module, nn.Conv2d) or received.dim() != 4 or module.padding_mode != "zeros":
            continue
        fed.append(FedConvolution(name=name, patches=Patches.of(module, tuple(received.shape[1:])), map=number))
    sizes = tuple(float(value.square().mean().sqrt()) for value in mode.returned)
    return MapsOfModel(relus=frozenset(mode.relus), convolutions=tuple(fed), norms=sizes)


def follows(victim: Victim, number: int) -> bool:
    """Whether all that comes after a map follows from it alone: nothing reaches around it."""
    like = reference(victim.model)
    images = torch.randn(2, *victim.inputs.shape, generator=torch.Generator().manual_seed(1)).to(like)
    with torch.no_grad():
        seen = _Numbered({})
        with seen:
            victim.model(images[:1])
        scores = []
        for image in images:
            with _Numbered({number: seen.returned[number]}):
                scores.append(victim.outcome(image[None]))
    return bool(torch.isclose(scores[0], scores[1], rtol=1e-4))


class _Numbered(TorchFunctionMode):
    """Numbers what ReLUs and max poolings return, and returns known maps in place of it; gradients end at the first."""

    def __init__(self, known: Mapping[int, Tensor], first: int | None = None) -> None:
        super().__init__()
        self._known = known
        self._first = first
        self.returned: list[Tensor] = []
        self.relus: list[int] = []

    def number_of(self, value: object) -> int | None:
        """The number of a map, known by identity; None of anything else."""
        numbers = [number for number, kept in enumerate(self.returned) if kept is value]
        return numbers[-1] if numbers else None  # what works in place returns what it was given

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func not in _RELUS and func not in _POOLS:
            return func(*args, **options)
        number = len(self.returned)
        if func in _RELUS:
            self.relus.append(number)
        result = self._known.get(number)
        if result is None:
            result = func(*args, **options)
        elif func in _RELUS and number != self._first:
            result = _KnownReLU.apply(args[0] if args else options["input"], result)
        else:
            result = result.clone()  # layers behind may overwrite it
        self.returned.append(result)
        return result


class _KnownReLU(torch.autograd.Function):
    """A ReLU whose output is known, so that it is known too which of its inputs were positive."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, known: Tensor) -> Tensor:
        """The known output."""
        del value
        ctx.save_for_backward(known)
        return known.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """What the ReLU lets pass, and the gradient with respect to the map."""
        (known,) = ctx.saved_tensors
        return gradient * (known > 0), gradient


def output_gradients(
    replay: Replay,
    known: Mapping[int, Tensor],
    labels: Tensor,
    layers: Sequence[str],
    *,
    first: int | None = None,
    batch_size: int | None = None,
) -> dict[str, Tensor]:
    """Gradients of the loss with respect to the outputs of convolutions, with maps behind them known.

    Args:
        replay: The model, weights and buffers.
        known: (batch, channels, height, width) by number; all that stand between a layer and the loss and are not known
            must follow from those that are.
        labels: (batch,).
        layers: Names of convolutions.
        first: Number of a map behind which all layers stand, and from which all follows: what is before it is then run
            for one image alone.
        batch_size: Images of one batch, where several stand one behind the other; the loss is then their mean.

    Returns:
        (batch, outputs, height, width) by name; zeros for a layer that no gradient reaches.
    """
    with _outputs(replay.victim.model, layers) as outputs, torch.enable_grad():
        loss = _loss(replay, known, labels, first, batch_size)
        found = torch.autograd.grad(loss, [outputs[name] for name in layers], materialize_grads=True)
    return dict(zip(layers, found, strict=True))


def map_gradient(replay: Replay, known: Mapping[int, Tensor], labels: Tensor, number: int) -> Tensor:
    """Gradient of the loss with respect to a known map, in its shape.

    Args:
        replay: The model, weights and buffers.
        known: Maps by number, as for `output_gradients`.
        labels: (batch,).
        number: Number of the map.
    """
    value = known[number].detach().requires_grad_()
    with torch.enable_grad():
        loss = _loss(replay, {**known, number: value}, labels)
        (found,) = torch.autograd.grad(loss, [value])
    return found


def _loss(
    replay: Replay, known: Mapping[int, Tensor], labels: Tensor, first: int | None = None, batch_size: int | None = None
) -> Tensor:
    like = next(iter(known.values()))
    images = like.new_zeros(len(labels) if first is None else 1, *replay.victim.inputs.shape)
    trained = {name: value.detach().requires_grad_() for name, value in replay.parameters.items()}
    with _Numbered(known, first):
        return replay.loss(trained, images, labels, (), batch_size)


@contextmanager
def _outputs(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What layers return inside the block."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def hook(_module: nn.Module, _arguments: Any, output: Tensor) -> Tensor:
            outputs[name] = output
            return output.clone()  # an activation that works in place would change what is kept

        return hook

    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(keep(name)) for name in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
