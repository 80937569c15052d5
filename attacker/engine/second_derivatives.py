"""Second derivatives where torch's own kernels have none: attention, and the hard sigmoid of MobileNetV3."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Inside the block attention is plain matrix products, and every ``torch.nn.Hardsigmoid`` is made of `relu6`.

    The values are the same up to rounding, and no method stays behind on the model. Nothing else is changed: a kernel
    without a second derivative that the model calls in another way fails as torch has it fail.

    Args:
        model: Runs in the block.
    """
    layers = [one for one in model.modules() if type(one) is nn.Hardsigmoid and "forward" not in one.__dict__]
    for layer in layers:
        # Shadows the method of the class.
        layer.__dict__["forward"] = _hard_sigmoid
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward")


def _hard_sigmoid(values: Tensor) -> Tensor:
    return F.relu6(values + 3) / 6
