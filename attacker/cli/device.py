"""The option ``--device`` of the commands that attack."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch

AUTO = "auto"

Device = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        help="Device: auto (a GPU where there is one), cpu, cuda, cuda:1 or another device of PyTorch.",
    ),
]


def find_device(wanted: str) -> torch.device:
    """The device that is asked for, seen to work.

    Raises:
        typer.BadParameter: If there is no such device here.
    """
    import torch

    if wanted == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    hint = "take --device auto or --device cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise typer.BadParameter(
            f"there is no CUDA device here, or torch was built without CUDA; {hint}", param_hint="--device"
        )
    try:
        device = torch.device(wanted)
        # A name that torch knows is not yet a device of this machine, and "meta" computes nothing.
        torch.ones(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise typer.BadParameter(
            f"expected a device that computes on this machine, got {wanted!r}: {reason}; {hint}", param_hint="--device"
        ) from None
    return device
