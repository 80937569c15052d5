"""Normal noise for candidates, each from a generator of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Draws:
    """Noise that does not depend on which candidates are drawn together.

    A memory that holds fewer candidates at once, or another number of victims beside this one, must not change what a
    candidate starts from.

    Attributes:
        seeds: One for each restart of each victim.
        generators: Those of the seeds, as far as they have come; new ones when left out.
    """

    seeds: Sequence[Sequence[int]]
    generators: Sequence[Sequence[Generator]] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if not self.generators:
            new = [[Generator().manual_seed(seed) for seed in row] for row in self.seeds]
            object.__setattr__(self, "generators", new)

    @classmethod
    def seeded(cls, victims: int, restarts: int, generator: Generator) -> Draws:
        """Generators for (victims, restarts) with seeds drawn from ``generator``."""
        return cls(torch.randint(2**62, (victims, restarts), generator=generator, device=generator.device).tolist())

    @classmethod
    def of_each(cls, generators: Sequence[Generator], restarts: int) -> Draws:
        """Generators for as many victims as ``generators``, each victim's seeds drawn from its own."""
        return cls([cls.seeded(1, restarts, generator).seeds[0] for generator in generators])

    @property
    def axes(self) -> tuple[int, int]:
        """Numbers of victims and of restarts."""
        return len(self.seeds), len(self.seeds[0])

    def normal(self, *shape: int, like: Tensor) -> Tensor:
        """(victims, restarts, *shape) from N(0, 1) in the dtype and on the device of ``like``."""
        rows = [
            [torch.randn(shape, generator=generator, dtype=like.dtype, device=generator.device) for generator in row]
            for row in self.generators
        ]
        return torch.stack([torch.stack(row) for row in rows]).to(like.device)

    def keep(self, victims: Sequence[int], restarts: Sequence[Sequence[int]]) -> Draws:
        """Those of some candidates, which go on where they are.

        Args:
            victims: Indices of the victims that stay.
            restarts: For each of these the indices of its restarts that stay, as many for each.
        """
        chosen = list(zip(victims, restarts, strict=True))
        return Draws(
            [[self.seeds[v][r] for r in row] for v, row in chosen],
            [[self.generators[v][r] for r in row] for v, row in chosen],
        )

    def afresh(self) -> Draws:
        """The same seeds from their beginning."""
        return Draws(self.seeds)
