"""Skip connections around a chain of layers: a shortcut that starts inside it shows in gradients only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attacker.analytic.layer_chain import Step
from attacker.gradients.uncompared_parameters import reference
from attacker.reasons import Reason, because
from attacker.victim import Victim
from fl_precode.randomness.random_layers import sample_noise

_TOLERANCE = 1e-3
"""Relative; float32 leaves about 1e-6, a shortcut changes gradients by a share of their size."""


def why_bypassed(victim: Victim, steps: Sequence[Step], layer: nn.Linear) -> Reason | None:
    """Why gradients of the chain's layers are more than what flows back through it, or None when they are just that.

    The true gradient of the victim's loss on one random image (of any scalar, where its loss is not known) is compared
    with what the chain alone makes of the gradient with respect to the outputs of ``layer``, pulled back from there.

    Args:
        victim: Public knowledge about the model.
        steps: The chain from the image up to what enters ``layer``.
        layer: A Linear layer that is fed by the last step, inside of a bottleneck perhaps.
    """
    like = reference(victim.model)
    generator = torch.Generator().manual_seed(1)
    probe = torch.randn((1, *victim.inputs.shape), generator=generator, dtype=like.dtype).to(like.device)
    trained = [
        (name, value)
        for step in steps
        for name, value in step.module.named_parameters(prefix=step.name)
        if value.requires_grad
    ]
    names, parameters = [name for name, _ in trained], [value for _, value in trained]
    if not parameters:
        return None
    outputs: list[Tensor] = []
    has_loss = victim.why_no_loss is None  # runs the model, so not while the hook is there
    handle = layer.register_forward_hook(lambda _module, _arguments, output: outputs.append(output))
    try:
        with torch.enable_grad(), sample_noise(generator=torch.Generator(like.device).manual_seed(1)):
            label = torch.zeros(1, dtype=torch.long, device=like.device)
            loss = victim.training_loss(probe, label) if has_loss else victim.outcome(probe)
    finally:
        handle.remove()
    if len(outputs) != 1:
        return because("layer-shared.first", times=len(outputs))
    true = torch.autograd.grad(loss, [*parameters, outputs[0]], materialize_grads=True)
    with torch.enable_grad():
        value = probe
        for step in steps:
            value = step.module(value.reshape(1, *step.input_shape))
        output = layer(value.reshape(1, layer.in_features))
        chain_gradients = torch.autograd.grad(
            output, parameters, true[-1].reshape(output.shape), materialize_grads=True
        )
    for name, expected, gradient in zip(names, true, chain_gradients, strict=False):
        if float((expected - gradient).norm()) > _TOLERANCE * max(float(expected.norm()), float(gradient.norm())):
            return because("chain-bypassed", name=name)
    return None
