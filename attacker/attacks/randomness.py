"""A generator for every observation, so that what an attack draws for one does not depend on which others it sees."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator


def derived(generator: Generator, count: int) -> list[Generator]:
    """Generators on the CPU, seeded by as many draws of ``generator``, one after another.

    A longer list begins with the shorter one.
    """
    drawn = (torch.randint(2**62, (1,), generator=generator, device=generator.device) for _ in range(count))
    return [torch.Generator().manual_seed(int(seed)) for seed in drawn]


def one_for_each(generator: Generator | Sequence[Generator], count: int) -> list[Generator]:
    """As many generators as observations: those given, or from a single one by each observation's place.

    Raises:
        ValueError: If there are more or fewer generators than observations.
    """
    if not isinstance(generator, Sequence):
        return derived(generator, count)
    if len(generator) != count:
        raise ValueError(f"expected a generator for each of {count} observations, or one, got {len(generator)}")
    return list(generator)
