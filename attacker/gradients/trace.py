"""Trace of one forward pass: parameterised layers and bottlenecks in order of execution."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from attacker.gradients.uncompared_parameters import has_weights, moves, reference
from attacker.victim import Victim
from fl_precode.randomness.random_layers import Bottleneck, RandomLayer, sample_noise


@dataclass(frozen=True, kw_only=True)
class LayerRun:
    """One execution of a layer that owns parameters itself, or that draws noise.

    Attributes:
        name: Module name as in ``named_modules``.
        module: The layer.
        inputs: First tensor that the layer received, or None when it got none. A detached copy.
        output_shape: Shape of the tensor that it returned, or None when it returned something else.
        overwritten: Whether the tensor it received or returned was changed in place later in the same pass.
    """

    name: str
    module: nn.Module
    inputs: Tensor | None
    output_shape: tuple[int, ...] | None
    overwritten: bool


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One forward pass on a probe.

    Attributes:
        probe: (batch, channels, height, width), what the model was given.
        layers: Layers that own parameters, in order of execution, those aside whose parameters are all constants.
        random: Layers that draw noise, in order of execution.
        frozen: Layers whose parameters are all constants, in order of execution.
        first: The one of both kinds that ran first; None without one.
        classifier: The Linear layer of both kinds that ran last, the classifier of nearly every model; None without.
        views: Whether `torch.Tensor.view` was called, which refuses images that are stored with channels last.
    """

    probe: Tensor
    layers: tuple[LayerRun, ...]
    random: tuple[LayerRun, ...]
    frozen: tuple[LayerRun, ...] = ()
    first: LayerRun | None = None
    classifier: LayerRun | None = None
    views: bool = False

    @property
    def bottlenecks(self) -> tuple[LayerRun, ...]:
        """Variational bottlenecks, in order of execution."""
        return tuple(run for run in self.random if isinstance(run.module, Bottleneck))

    @property
    def latents(self) -> tuple[tuple[int, ...], ...]:
        """Shape of the noise that each executed random layer draws for one image, in order of execution."""
        runs = [(run.module, run.inputs) for run in self.random]
        return tuple(m.latent_shape(x.shape[1:]) for m, x in runs if isinstance(m, RandomLayer) and x is not None)

    def last_linear(self) -> LayerRun | None:
        """The Linear layer that ran last, whether its parameters moved or not; None without one."""
        return self.classifier


_Found = TypeVar("_Found")


class KeptForModels(Generic[_Found]):
    """Latest findings about models that have not changed since.

    Every attack asks for the same when it is planned and when it runs, and a pass of a transformer takes seconds. A
    model stays beside what was found, so that no other gets its address.

    Args:
        most: Findings that are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[tuple[object, ...], tuple[nn.Module, _Found]] = OrderedDict()

    def get(self, model: nn.Module, about: tuple[object, ...], find: Callable[[], _Found]) -> _Found:
        """What was found for this state of a model, else what is found now.

        Args:
            model: The model.
            about: What else it depends on.
            find: Finds it, and leaves the model as it is.
        """
        key = (*about, *_state(model))
        if key not in self._kept:
            self._kept[key] = model, find()
        self._kept.move_to_end(key)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return self._kept[key][1]


_TRACES: Final[KeptForModels[Trace]] = KeptForModels(4)
"""Of two models, as an update may leave some parameters as they are, at two sizes of batch."""


def trace(victim: Victim, *, batch_size: int = 2) -> Trace:
    """What ran when the victim's model was run once on fixed random images; kept for models that have not changed.

    The model's own weights are used (their values do not matter), no state of torch's global generator is consumed by
    the bottlenecks, and no hook stays behind.

    Args:
        victim: Public knowledge about the model.
        batch_size: Images in the probe.

    Returns:
        Layers and bottlenecks in order of execution.
    """
    about = (batch_size, victim.inputs.shape)
    return _TRACES.get(victim.model, about, lambda: _traced(victim, batch_size))


def _state(model: nn.Module) -> tuple[object, ...]:
    """What tells a model, as it is now, from any other that is alive."""
    modules = tuple((id(module), module.training) for module in model.modules())
    tensors = tuple((id(tensor), tensor._version) for tensor in (*model.parameters(), *model.buffers()))
    return (id(model), modules, tensors)


def _traced(victim: Victim, batch_size: int) -> Trace:
    generator = torch.Generator().manual_seed(0)
    like = reference(victim.model)
    shape = (batch_size, *victim.inputs.shape)
    probe = torch.randn(shape, generator=generator, dtype=like.dtype, device=generator.device).to(like.device)
    finished: list[Callable[[], LayerRun]] = []
    hooks = [
        module.register_forward_hook(_recorder(name, finished))
        for name, module in victim.model.named_modules()
        if isinstance(module, RandomLayer) or has_weights(module)
    ]
    try:
        with torch.no_grad(), sample_noise(generator=torch.Generator(like.device).manual_seed(0)), Views() as views:
            victim.model(probe.clone())
    finally:
        for hook in hooks:
            hook.remove()
    runs = [finish() for finish in finished]
    layers = [run for run in runs if not isinstance(run.module, RandomLayer)]
    linear = [run for run in layers if isinstance(run.module, nn.Linear)]
    return Trace(
        probe=probe,
        layers=tuple(run for run in layers if _moves(run.module)),
        frozen=tuple(run for run in layers if not _moves(run.module)),
        first=layers[0] if layers else None,
        classifier=linear[-1] if linear else None,
        random=tuple(run for run in runs if isinstance(run.module, RandomLayer)),
        views=views.any,
    )


def _moves(module: nn.Module) -> bool:
    return any(moves(module, name) for name in module._parameters)


class Views(TorchFunctionMode):
    """Inside the block a model's ``x.view(shape)`` is ``x.reshape(shape)``: the same values, in any memory layout.

    Attributes:
        any: Whether there was one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.any = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not torch.Tensor.view or kwargs or any(isinstance(argument, torch.dtype) for argument in args):
            return func(*args, **(kwargs or {}))
        self.any = True
        return args[0].reshape(*args[1:])


def _recorder(name: str, finished: list[Callable[[], LayerRun]]) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    """A forward hook whose record is completed after the pass, when it is known what was overwritten."""

    def record(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        tensors = [value for value in (*arguments[:1], *outputs) if isinstance(value, Tensor)]
        versions = [value._version for value in tensors]
        received = arguments[0].detach().clone() if arguments and isinstance(arguments[0], Tensor) else None
        returned = tuple(output.shape) if isinstance(output, Tensor) else None

        def finish() -> LayerRun:
            changed = any(value._version != version for value, version in zip(tensors, versions, strict=True))
            return LayerRun(name=name, module=module, inputs=received, output_shape=returned, overwritten=changed)

        finished.append(finish)

    return record
