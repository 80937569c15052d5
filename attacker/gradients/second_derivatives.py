"""Second derivatives where torch's own kernels have none: attention, and the hard sigmoid of MobileNetV3."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from attacker.gradients.checkpoints import without_checkpoints
from attacker.gradients.ghost.patched_forward import shadowed


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Inside the block attention is plain matrix products, ``Hardsigmoid`` is `relu6`, and nothing is checkpointed.

    The values are the same up to rounding. Nothing else is changed: a kernel without a second derivative that the model
    calls in another way fails as torch has it fail.

    Args:
        model: Runs in the block.
    """
    layers = [layer for layer in model.modules() if type(layer) is nn.Hardsigmoid]
    with (
        shadowed({layer: partial(_hard_sigmoid, layer) for layer in layers}),
        sdpa_kernel(SDPBackend.MATH),
        without_checkpoints(),
    ):
        yield


def _hard_sigmoid(layer: nn.Hardsigmoid, values: Tensor) -> Tensor:
    activations = F.relu6(values + 3) / 6
    return values.copy_(activations) if layer.inplace else activations
