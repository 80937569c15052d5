"""A model as a chain of layers, each of which is fed what the one before it returned; and where the chain ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import torch
from torch import Tensor, nn

from attacker.gradients.trace import KeptForModels
from attacker.gradients.uncompared_parameters import reference
from attacker.reasons import Reason, because
from attacker.victim import Victim
from fl_precode.models.outputs import class_scores
from fl_precode.randomness.random_layers import Bottleneck, sample_noise

# What models call as a function instead of a layer; recognised by its values on the probe.
_ACTIVATIONS: tuple[nn.Module, ...] = (
    nn.ReLU(),
    nn.Sigmoid(),
    nn.Tanh(),
    nn.LeakyReLU(0.01),
    nn.LeakyReLU(0.2),
    nn.Softplus(),
)
_POOLS: tuple[nn.Module, ...] = (nn.AvgPool2d(2), nn.MaxPool2d(2))
_Modules = tuple[nn.Module, ...]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One layer of the chain. Between two layers a value may change its shape, but not the order of its numbers.

    Attributes:
        name: Module name as in ``named_modules``; "after NAME" for an activation or pooling called as a function.
        module: The layer; a `Bottleneck` is one layer, whatever it is made of.
        input_shape: What it receives for one image, without the batch.
        output_shape: What it returns for one image.
        shared: Whether it runs more than once, or shares a parameter with another module: its gradient is then a sum.
    """

    name: str
    module: nn.Module
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    shared: bool = False

    @property
    def kind(self) -> str:
        """Class of the layer, for messages."""
        return type(self.module).__name__

    def parameter(self, name: str) -> str:
        """Name in the model of the layer's parameter ``name``."""
        return f"{self.name}.{name}" if self.name else name


@dataclass(frozen=True, kw_only=True)
class LayerChain:
    """The layers from the image on, as long as each is fed what the one before returned.

    A chain says how values flow forward. That nothing reaches around it from inside, as a shortcut to a later layer
    would, shows in gradients only: see `attacker.analytic.skip_connections.why_bypassed`.

    Attributes:
        steps: In order of execution.
        ends: Why the chain ends before the model's output; None when it is the whole model.
    """

    steps: tuple[Step, ...]
    ends: Reason | None

    def parameterised(self) -> list[int]:
        """Places of the layers that have parameters."""
        return [i for i, step in enumerate(self.steps) if any(True for _ in step.module.parameters())]


@dataclass(frozen=True)
class _Run:
    name: str
    module: nn.Module
    received: Tensor | None
    returned: Tensor | None


_CHAINS: Final[KeptForModels[LayerChain]] = KeptForModels(4)


def chain(victim: Victim) -> LayerChain:
    """Run the model once on two random images and follow them from layer to layer; kept while it does not change.

    The model's own weights are used; their values do not matter. Noise of bottlenecks comes from a generator of its
    own, and no hook stays behind.

    >>> from fl_precode.models import InputSpec, build_model
    >>> inputs = InputSpec(channels=3, height=8, width=8, classes=4, mean=(0.5,) * 3, std=(0.5,) * 3)
    >>> found = chain(Victim(model=build_model("lenet", inputs, seed=0), inputs=inputs))
    >>> found.ends is None, [step.name for step in found.steps][:3], found.steps[0].output_shape
    (True, ['conv1', 'act1', 'conv2'], (12, 4, 4))
    """
    about = (victim.inputs.shape, victim.inputs.classes)
    return _CHAINS.get(victim.model, about, lambda: _followed(victim))


def _followed(victim: Victim) -> LayerChain:
    probe, output, runs = _watched(victim)
    calls = Counter(run.name for run in runs)
    shared = _sharing(victim.model)
    steps: list[Step] = []
    value, before = probe, "the image"
    for run in runs:
        between = _between(value, run.received)
        if between is None:
            return LayerChain(steps=tuple(steps), ends=_broken(before, run.name))
        for module in between:
            steps.append(_step(f"after {before}", module, value, module(value)))
            value = module(value)
        received, returned = run.received, run.returned
        if received is None or returned is None or returned.dim() < 2 or len(returned) != len(probe):
            return LayerChain(steps=tuple(steps), ends=because("chain-broken.batch", name=run.name))
        several = calls[run.name] > 1 and any(True for _ in run.module.parameters())
        steps.append(_step(run.name, run.module, received, returned, shared=several or run.name in shared))
        value, before = returned, run.name
    between = _between(value, output)
    if between is None:
        return LayerChain(steps=tuple(steps), ends=_broken(before, "the output"))
    for module in between:
        steps.append(_step(f"after {before}", module, value, module(value)))
        value = module(value)
    return LayerChain(steps=tuple(steps), ends=None)


def _step(name: str, module: nn.Module, received: Tensor, returned: Tensor, *, shared: bool = False) -> Step:
    return Step(
        name=name,
        module=module,
        input_shape=tuple(received.shape[1:]),
        output_shape=tuple(returned.shape[1:]),
        shared=shared,
    )


def _broken(before: str, after: str) -> Reason:
    return because("chain-broken", after=after, before=before)


def _watched(victim: Victim) -> tuple[Tensor, Tensor | None, list[_Run]]:
    """The probe, the output, and the runs of the innermost modules and of bottlenecks."""
    like = reference(victim.model)
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn((2, *victim.inputs.shape), generator=generator, dtype=like.dtype).to(like.device)
    runs: list[_Run] = []
    names: list[str] = []
    handles = []
    for name, module in victim.model.named_modules():
        inside = any(f"{name}.".startswith(f"{outer}.") or not outer for outer in names)
        if inside or (any(True for _ in module.children()) and not isinstance(module, Bottleneck)):
            continue
        if isinstance(module, Bottleneck):
            names.append(name)
        received: list[Tensor | None] = []
        handles.append(module.register_forward_pre_hook(_keeper(received)))
        handles.append(module.register_forward_hook(_recorder(name, received, runs)))
    try:
        with torch.no_grad(), sample_noise(generator=torch.Generator(like.device).manual_seed(0)):
            output = victim.model(probe.clone())
    finally:
        for handle in handles:
            handle.remove()
    if isinstance(output, Tensor):
        return probe, output, runs
    return probe, class_scores(output, victim.inputs.classes), runs


def _keeper(received: list[Tensor | None]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def keep(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        single = len(arguments) == 1 and isinstance(arguments[0], Tensor)
        received.append(arguments[0].detach().clone() if single else None)  # a copy: layers may work in place

    return keep


def _recorder(
    name: str, received: list[Tensor | None], runs: list[_Run]
) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def record(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        returned = output.detach().clone() if isinstance(output, Tensor) else None
        runs.append(_Run(name, module, received.pop(), returned))

    return record


def _sharing(model: nn.Module) -> frozenset[str]:
    """Names of modules with a parameter that another module has too."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    return frozenset(name for names in owners.values() if len(names) > 1 for name in names)


def _between(value: Tensor, received: Tensor | None) -> _Modules | None:
    """Functions that turn ``value`` into what was received, none when it is the same; None when none is found."""
    if received is None:
        return None
    if _same(value, received):
        return ()
    singles: list[_Modules] = [(module,) for module in (*_ACTIVATIONS, *_POOLS)]
    pairs: list[_Modules] = [*product(_ACTIVATIONS, _POOLS), *product(_POOLS, _ACTIVATIONS)]
    for modules in singles + pairs:
        if value.dim() != 4 and any(module in _POOLS for module in modules):
            continue
        if _gives(modules, value, received):
            return modules
    return None


def _gives(modules: _Modules, value: Tensor, received: Tensor) -> bool:
    try:
        with torch.no_grad():
            return _same(nn.Sequential(*modules)(value), received)
    except RuntimeError:  # the window of a pooling layer is larger than the map
        return False


def _same(value: Tensor, other: Tensor) -> bool:
    return value.numel() == other.numel() and torch.equal(value.flatten(1), other.flatten(1))
