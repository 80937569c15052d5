"""Products with a fixed matrix, by oneDNN where torch's own library leaves half of the processor unused.

torch multiplies matrices on x86 by MKL, which keeps to AVX2 on processors that Intel did not make: 85 to 100 GFLOP/s on
one core of an AMD EPYC with AVX-512, where oneDNN, which comes with torch for convolutions, reaches 165 to 220.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# Below these numbers of rows and of weights the two libraries are equal, or the call costs more than the product.
_FEWEST_ROWS = 4
_FEWEST_WEIGHTS = 1 << 16

_CPU_INFO = Path("/proc/cpuinfo")


def worth_it(weight: Tensor) -> bool:
    """Whether `MatrixProduct` with such a weight is faster than `torch.nn.functional.linear`, for enough rows."""
    fitting = weight.device.type == "cpu" and weight.dtype == torch.float32
    return fitting and weight.numel() >= _FEWEST_WEIGHTS and _default_is_slow(_CPU_INFO)


@cache
def _default_is_slow(cpu_info: Path) -> bool:
    """By what the processor is and not by a measurement, so that the same seed takes the same path every time."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    try:
        return "GenuineIntel" not in cpu_info.read_text()
    except OSError:  # not Linux: nobody measured
        return False


class MatrixProduct(torch.autograd.Function):
    """``MatrixProduct.apply(rows, weight, bias)``: ``rows @ weight.T + bias``, with derivatives of every order by rows.

    Rows (n, in), weight (out, in) and bias (out,) or None, in float32 on a CPU. Weight and bias get no derivative.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See the class."""
        ctx.save_for_backward(weight)
        if len(rows) < _FEWEST_ROWS:
            return F.linear(rows, weight, bias)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
        return product

    @staticmethod
    def backward(ctx: Any, deltas: Tensor) -> tuple[Tensor | None, ...]:
        """A product with the transposed weight."""
        (weight,) = ctx.saved_tensors
        return MatrixProduct.apply(deltas, weight.mT, None), None, None
