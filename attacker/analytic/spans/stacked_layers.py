"""Two Linear layers with nothing but an elementwise activation between them, found by running the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacker.gradients.dropout_masks import dropout_layers
from attacker.gradients.trace import KeptForModels, Trace
from attacker.gradients.uncompared_parameters import moves
from attacker.reasons import Reason, because
from attacker.victim import Victim
from fl_precode.randomness.random_layers import sample_noise

_AGREES: Final = 1e-5
"""Share of the largest output by which an activation may differ from the one that is tried: float32 rounding."""

Activation = Callable[[Tensor], Tensor]


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS: tuple[tuple[str, Activation], ...] = (
    ("sigmoid", torch.sigmoid),
    ("tanh", torch.tanh),
    ("GELU", F.gelu),
    ("GELU by tanh", nn.GELU(approximate="tanh")),
    ("quick GELU", _quick_gelu),
    ("SiLU", F.silu),
    ("softplus", F.softplus),
    ("Mish", F.mish),
    ("ELU", F.elu),
    ("softsign", F.softsign),
    ("ReLU", F.relu),
)
"""What models call as a function or as a layer; recognised by its values on the probe."""


@dataclass(frozen=True, kw_only=True)
class StackedLayers:
    """A Linear layer, an activation, and the Linear layer that sees nothing else.

    Attributes:
        first: Name of the layer whose inputs are looked for.
        second: Name of the layer behind the activation.
        activation: Elementwise, from what the first returns to what the second sees.
        kind: Name of the activation, for people.
    """

    first: str
    second: str
    activation: Activation
    kind: str

    def parameter(self, layer: str, name: str) -> str:
        """Name in the model of a parameter of one of the two layers."""
        return f"{layer}.{name}" if layer else name

    def keeps_factors(self) -> bool:
        """Whether the activation passes a factor on, -1 or 2: then a layer without a bias does not tell x from it."""
        points = torch.linspace(-2.0, 2.0, 9, dtype=torch.float64)
        value = self.activation(points)
        return any(torch.allclose(self.activation(factor * points), factor * value) for factor in (-1.0, 2.0))


def value_and_slope(activation: Activation, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """An elementwise function and its derivative, in the shape of ``inputs``.

    >>> value_and_slope(torch.square, torch.tensor([3.0]))
    (tensor([9.]), tensor([6.]))
    """
    with torch.enable_grad():
        point = inputs.detach().requires_grad_(True)
        value = activation(point)
        (slope,) = torch.autograd.grad(value.sum(), point)
    return value.detach(), slope


def stacked_layers(victim: Victim, trace: Trace, first: nn.Module) -> StackedLayers | Reason:
    """The pair that begins with a Linear layer, or why what it returns reaches no other through an activation alone.

    Args:
        victim: Public knowledge about the model.
        trace: Says the probe.
        first: The layer whose inputs are looked for; a part of the victim's model.
    """
    runs = linear_runs(victim, trace)
    places = [place for place, run in enumerate(runs) if run.module is first]
    if len(places) != 1:
        return because("layer-shared.first", times=len(places))
    own = runs[places[0]]
    behind = runs[places[0] + 1 :]
    dropping = next((run for run in behind if not isinstance(run.module, nn.Linear)), None)
    second = next((run for run in behind if isinstance(run.module, nn.Linear)), None)
    if second is None:
        return because("no-second-layer", name=own.name)
    if dropping is not None and behind.index(dropping) < behind.index(second):
        return because("second-layer-behind-dropout", name=own.name, second=second.name, dropout=dropping.name)
    found = _activation_between(victim, own.returned, second.received)
    if found is None:
        return because("no-second-layer.activation", name=own.name, second=second.name)
    if sum(run.module is second.module for run in runs) != 1:
        return because("layer-shared", name=second.name)
    if not moves(second.module, "weight"):
        return because("first-layer-did-not-move", what="weight", name=second.name)
    kind, activation = found
    return StackedLayers(first=own.name, second=second.name, activation=activation, kind=kind)


@dataclass(frozen=True)
class LinearRun:
    """One execution of a Linear layer, or of active dropout.

    Attributes:
        name: Name of the layer.
        module: The layer.
        received: What it was given, a copy.
        returned: What it gave, a copy.
    """

    name: str
    module: nn.Module
    received: Tensor
    returned: Tensor


_RUNS: Final[KeptForModels[tuple[LinearRun, ...]]] = KeptForModels(2)
"""At two sizes of batch."""


def linear_runs(victim: Victim, trace: Trace) -> tuple[LinearRun, ...]:
    """Linear layers and active dropout, in order of execution; kept for models that have not changed."""
    about = (tuple(trace.probe.shape), trace.probe.dtype)
    return _RUNS.get(victim.model, about, lambda: _linear_runs(victim, trace))


def _linear_runs(victim: Victim, trace: Trace) -> tuple[LinearRun, ...]:
    runs: list[LinearRun] = []
    dropping = set(dropout_layers(victim.model))

    def record(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def keep(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            runs.append(LinearRun(name, module, arguments[0].detach().clone(), output.detach().clone()))

        return keep

    handles = [
        module.register_forward_hook(record(name))
        for name, module in victim.model.named_modules()
        if isinstance(module, nn.Linear) or name in dropping
    ]
    try:
        with torch.no_grad(), sample_noise(generator=torch.Generator(trace.probe.device).manual_seed(0)):
            victim.model(trace.probe.clone())
    finally:
        for handle in handles:
            handle.remove()
    return tuple(runs)


def _activation_between(victim: Victim, returned: Tensor, received: Tensor) -> tuple[str, Activation] | None:
    """The elementwise function that turns one into the other: one of the usual, or a layer of the model itself."""
    if returned.shape != received.shape:
        return None
    own: list[tuple[str, Activation]] = [
        (type(module).__name__, module)
        for module in victim.model.modules()
        if type(module).__module__ == "torch.nn.modules.activation" and not [*module.parameters(), *module.children()]
    ]
    size = float(received.abs().max())
    for kind, activation in (*_ACTIVATIONS, *own):
        with torch.no_grad():
            value = activation(returned.clone())
        if value.shape == received.shape and float((value - received).abs().max()) <= _AGREES * size:
            return kind, activation
    return None
