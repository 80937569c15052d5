"""Random initialisation that is a function of a seed and leaves torch's global generators as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from fl_precode.randomness.random_layers import noise_is_given, sample_noise


def _cuda_in_use() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


@contextmanager
def undisturbed_rng() -> Iterator[None]:
    """Restore torch's global generators (CPU, and CUDA where it is in use) after the block."""
    # An unused CUDA is left alone: asking for its state would start it, in every process of a simulation.
    devices = list(range(torch.cuda.device_count())) if _cuda_in_use() else []
    with torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside the block torch's global generators start from ``seed``; after it they are as before.

    Bottlenecks inside draw from them too, unless a `fl_precode.sample_noise` around it says from where.

    >>> before = torch.random.get_rng_state()
    >>> with seeded(1):
    ...     first = torch.rand(2)
    >>> with seeded(1):
    ...     second = torch.rand(2)
    >>> torch.equal(first, second), torch.equal(before, torch.random.get_rng_state())
    (True, True)
    """
    with undisturbed_rng():
        if _cuda_in_use():
            torch.manual_seed(seed)
        else:
            # torch.manual_seed would also queue a seed for a CUDA that starts after this block.
            torch.default_generator.manual_seed(seed)
        with nullcontext() if noise_is_given() else sample_noise():
            yield
