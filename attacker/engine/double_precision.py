"""Sums and differences that rounding in float32 would bury."""

from __future__ import annotations

from torch import Tensor


def precise(values: Tensor) -> Tensor:
    """The values in float64, where the device has it.

    Near the solution ``1 - cos`` is the difference of two nearly equal numbers: sums in float32 would bury it under
    1e-7, make it negative, and leave the choice between good iterates to rounding.
    """
    return values if values.device.type == "mps" else values.double()
