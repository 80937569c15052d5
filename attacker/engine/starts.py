"""Where a search starts: noise, a flat image, or a pattern."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from attacker.engine.draws import Draws
from fl_precode.models.input_spec import InputSpec

STARTS = ("normal", "uniform", "grey", "patterned-N")
"""Names of starts; N is the side of the pattern's tile in pixels."""

_PATTERNED = re.compile(r"patterned-([1-9]\d{0,3})")


def tile_side(start: str) -> int | None:
    """Side of the tile of a patterned start, None for every other."""
    found = _PATTERNED.fullmatch(start)
    return None if found is None else int(found.group(1))


def check_start(start: str) -> None:
    """Refuse names of starts that do not exist.

    Raises:
        ValueError: Naming those that do.
    """
    if start not in STARTS[:-1] and tile_side(start) is None:
        raise ValueError(f"expected start to be one of {', '.join(STARTS)} with a whole N from 1 on, got {start!r}")


def first_candidates(start: str, inputs: InputSpec, batch: int, *, draws: Draws, like: Tensor) -> Tensor:
    """Candidates before the first step, (victims, restarts, batch, channels, height, width), normalised.

    Args:
        start: "normal": N(0, 1) in the normalised scale; "uniform": over all valid images; "grey": zero in the
            normalised scale, the mean image; "patterned-N": an N x N tile of N(0, 1) for each image, repeated and cut
            at the right and the lower edge (after Wei et al., arXiv 2004.10397, who find such starts faster).
        inputs: Shape and box of the images.
        batch: Images of one candidate.
        draws: Generators of all candidates.
        like: A tensor that says dtype and device.

    Raises:
        ValueError: If there is no such start.
    """
    check_start(start)
    side = tile_side(start)
    if side is not None:
        tiles = draws.normal(batch, inputs.channels, side, side, like=like)
        copies = [-(-size // side) for size in (inputs.height, inputs.width)]
        return tiles.repeat(1, 1, 1, 1, *copies)[..., : inputs.height, : inputs.width].contiguous()
    if start == "uniform":
        return inputs.normalise(torch.special.ndtr(draws.normal(batch, *inputs.shape, like=like)))
    if start == "grey":
        return torch.zeros(*draws.axes, batch, *inputs.shape, dtype=like.dtype, device=like.device)
    return draws.normal(batch, *inputs.shape, like=like)
