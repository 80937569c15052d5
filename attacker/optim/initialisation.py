"""Initialisation of a search: noise, a flat image, or a pattern."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from attacker.optim.random_streams import Draws
from attacker.optim.setting_ranges import check_whole
from fl_precode.models.input_spec import InputSpec

STARTS = ("normal", "uniform", "grey", "patterned-N")
"""Names of starts; N is the side of the pattern's tile in pixels."""

_PATTERNED = re.compile(r"patterned-([1-9]\d{0,3})")


@dataclass(frozen=True)
class Start(ABC):
    """The images that a search starts from."""

    @property
    @abstractmethod
    def name(self) -> str:
        """One of `STARTS`."""

    @abstractmethod
    def candidates(self, inputs: InputSpec, batch: int, *, draws: Draws, like: Tensor) -> Tensor:
        """Candidates before the first step, (victims, restarts, batch, channels, height, width), normalised.

        Args:
            inputs: Shape and box of the images.
            batch: Images of one candidate.
            draws: Generators of all candidates.
            like: A tensor that says dtype and device.
        """


class Normal(Start):
    """N(0, 1) in the normalised scale."""

    @property
    def name(self) -> str:
        """As in specs."""
        return "normal"

    def candidates(self, inputs: InputSpec, batch: int, *, draws: Draws, like: Tensor) -> Tensor:
        """Independent pixels."""
        return draws.normal(batch, *inputs.shape, like=like)


class Uniform(Start):
    """Uniform over all valid images."""

    @property
    def name(self) -> str:
        """As in specs."""
        return "uniform"

    def candidates(self, inputs: InputSpec, batch: int, *, draws: Draws, like: Tensor) -> Tensor:
        """Independent pixels in [0, 1], normalised."""
        return inputs.normalise(torch.special.ndtr(draws.normal(batch, *inputs.shape, like=like)))


class Grey(Start):
    """Zero in the normalised scale, the mean image: the same point for all restarts."""

    @property
    def name(self) -> str:
        """As in specs."""
        return "grey"

    def candidates(self, inputs: InputSpec, batch: int, *, draws: Draws, like: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros(*draws.axes, batch, *inputs.shape, dtype=like.dtype, device=like.device)


@dataclass(frozen=True)
class Patterned(Start):
    """A tile of N(0, 1) for each image, repeated and cut at the right and the lower edge.

    After Wei et al. (arXiv 2004.10397), who find such starts faster.

    Attributes:
        side: Height and width of the tile in pixels, 1 or more.

    Raises:
        ValueError: If the side is no whole number of 1 or more.
    """

    side: int = 4

    def __post_init__(self) -> None:
        check_whole("side", self.side, least=1)

    @property
    def name(self) -> str:
        """As in specs."""
        return f"patterned-{self.side}"

    def candidates(self, inputs: InputSpec, batch: int, *, draws: Draws, like: Tensor) -> Tensor:
        """The repeated tiles."""
        tiles = draws.normal(batch, inputs.channels, self.side, self.side, like=like)
        copies = [-(-size // self.side) for size in (inputs.height, inputs.width)]
        return tiles.repeat(1, 1, 1, 1, *copies)[..., : inputs.height, : inputs.width].contiguous()


_PLAIN: Mapping[str, Start] = MappingProxyType({start.name: start for start in (Normal(), Uniform(), Grey())})


def start_named(name: str) -> Start:
    """The start of a name.

    Raises:
        ValueError: If there is none; the message lists those that there are.

    >>> start_named("patterned-4")
    Patterned(side=4)
    """
    if name in _PLAIN:
        return _PLAIN[name]
    match = _PATTERNED.fullmatch(name)
    if match is None:
        raise ValueError(f"expected start to be one of {', '.join(STARTS)} with a whole N from 1 on, got {name!r}")
    return Patterned(int(match.group(1)))
