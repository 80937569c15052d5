"""The Linear layer with a bias that sees the image itself: what closed-form attacks start from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor, nn

from attacker.gradients.dropout_masks import dropout_layers
from attacker.gradients.replay import Replay
from attacker.gradients.trace import Trace
from attacker.gradients.uncompared_parameters import constants_of, moves
from attacker.reasons import Reason, because
from attacker.victim import Victim
from fl_precode.observation import Observation
from fl_precode.randomness.random_layers import sample_noise

PROBES: Final = 4
"""Images of a trace that are enough to tell constants of the model from anything else."""


@dataclass(frozen=True)
class FirstLinear:
    """A Linear layer that sees the flattened image, or each of its pixels times one constant plus another.

    Attributes:
        module: The layer.
        weight: Name of its weight.
        bias: Name of its bias, which may be constant or missing where `first_linear` was asked for no bias.
        scale: (features,), what the model multiplies each pixel by before the layer; None where it does not.
        shift: (features,), what it adds then; None where it does not.
    """

    module: nn.Linear
    weight: str
    bias: str
    scale: Tensor | None = None
    shift: Tensor | None = None

    def images(self, received: Tensor, victim: Victim) -> Tensor:
        """Images that the layer sees as the rows of ``received``, (n, features): (n, channels, height, width)."""
        if self.scale is not None and self.shift is not None:
            received = (received - self.shift.to(received)) / self.scale.to(received)
        return received.reshape(-1, *victim.inputs.shape)


def first_linear(trace: Trace, *, any_bias: bool = False) -> FirstLinear | Reason:
    """The first layer, if it is Linear with a bias and sees the image itself; else why not, naming the layer.

    Args:
        trace: Trace of the model.
        any_bias: Whether the layer may be without a bias, or have one that does not move.
    """
    first = trace.first
    if first is None:
        return because("no-parameters")
    kind = type(first.module).__name__
    if not isinstance(first.module, nn.Linear):
        return because("first-layer-not-linear", name=first.name, kind=kind)
    needed = ("weight",) if any_bias else ("weight", "bias")
    still = [name for name in needed if name in constants_of(first.module)]
    if still:
        return because("first-layer-did-not-move", what=" and the ".join(still), name=first.name)
    if not moves(first.module, "weight"):
        return because("first-layer-weight-computed", name=first.name)
    if not any_bias and not moves(first.module, "bias"):
        return because("first-layer-without-bias", name=first.name)
    received, image = first.inputs, trace.probe.flatten(1)
    prefix = f"{first.name}." if first.name else ""
    if received is None or received.shape != image.shape:
        return because("first-layer-sees-no-image", name=first.name)
    layer = FirstLinear(module=first.module, weight=f"{prefix}weight", bias=f"{prefix}bias")
    if torch.equal(received, image):
        return layer
    scaling = _scaling(image.double(), received.double())
    if scaling is None:
        return because("first-layer-sees-no-image", name=first.name)
    return replace(layer, scale=scaling[0], shift=scaling[1])


def why_dropped_before(victim: Victim, trace: Trace, first: FirstLinear) -> Reason | None:
    """Why the layer sees images of which dropout took a part, or None when none runs before it.

    A trace runs the model as in evaluation, where dropout passes everything.
    """
    modules = dict(victim.model.named_modules())
    order: list[str] = []
    hooked = {name: modules[name] for name in dropout_layers(victim.model)} | {"": first.module}
    handles = [
        module.register_forward_hook(lambda *_, name=name: order.append(name)) for name, module in hooked.items()
    ]
    try:
        with torch.no_grad(), sample_noise(generator=torch.Generator(trace.probe.device).manual_seed(0)):
            victim.model(trace.probe)
    finally:
        for handle in handles:
            handle.remove()
    if order[0] == "":
        return None
    return because("first-layer-behind-dropout", name=order[0])


def _scaling(image: Tensor, received: Tensor) -> tuple[Tensor, Tensor] | None:
    """Constants a and b, (features,) each, with received = a * image + b in every row; None when there are none.

    Models that normalise their input themselves, by buffers, do so. Two rows determine the constants, and every
    further row must agree.
    """
    if len(image) < 3:
        return None
    scale = (received[0] - received[1]) / (image[0] - image[1])
    shift = received[0] - scale * image[0]
    size = float(received.abs().max())
    if not bool((scale * image + shift - received).abs().max() <= 1e-4 * size) or not bool((scale != 0).all()):
        return None
    return scale, shift


def gradient_at(
    victim: Victim, layer: nn.Module, observation: Observation, inputs: Tensor, labels: Tensor, *, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """What a layer returns for each image, and the gradient of the clients' loss there.

    Args:
        victim: Public knowledge about the model.
        layer: A layer that runs once.
        observation: Says the weights and buffers.
        inputs: (batch, channels, height, width), normalised.
        labels: (batch,).
        seed: Seed of the noise that bottlenecks draw.

    Returns:
        Both in the shape that the layer returns.
    """
    caught: list[Tensor] = []

    def catch(_module: nn.Module, _arguments: object, output: Tensor) -> Tensor:
        caught.append(output.detach().requires_grad_(True))
        return caught[-1].clone()  # an activation may work in place

    replay = Replay(victim, observation.parameters, observation.buffers)
    handle = layer.register_forward_hook(catch)
    try:
        with torch.enable_grad(), sample_noise(generator=torch.Generator(inputs.device).manual_seed(seed)):
            loss = replay.loss(observation.parameters, inputs, labels, ())
            (gradient,) = torch.autograd.grad(loss, caught[-1:], materialize_grads=True)
    finally:
        handle.remove()
    return caught[-1].detach(), gradient


def why_no_relu(victim: Victim, observation: Observation, trace: Trace, first: FirstLinear) -> Reason | None:
    """Why the layer's output does not go through a ReLU, or None when it does.

    Found out by doing: no gradient may return where the output is negative, and some must where it is positive.
    """
    labels = torch.zeros(len(trace.probe), dtype=torch.int64, device=trace.probe.device)
    like = next(iter(observation.parameters.values()))
    output, gradient = gradient_at(victim, first.module, observation, trace.probe.to(like), labels)
    name = first.weight.removesuffix("weight").removesuffix(".")
    negative, passes = output < 0, gradient != 0
    if bool((negative & passes).any()):
        return because("first-layer-without-relu", name=name)
    if not bool(passes.any()):
        return because("first-layer-without-relu.silent", name=name)
    return None
