"""Random numbers that nobody can foresee: from the operating system, not from a seed.

A defence's noise protects only as long as nobody can draw it again. `torch.Generator.manual_seed` keeps 32 bits of its
seed for the CPU, and `Generator.seed` gives no more: 4 billion streams, which a server can try one after another
against a single update.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Generator, Tensor

NOISE_FROM_A_SEED = (
    "epsilon is not stated: the noise of this run was drawn from the run configuration's seed, and whoever has that "
    "seed, as the server has, takes the noise away"
)
"""Why there is no epsilon."""

# What torch keeps of a CPU generator, in words of 8 bytes: seed, two counters in one word, next, 624 words of the
# Mersenne twister, each in its lower half, then what is left of the last normal number.
_WORDS, _FIRST, _TWISTER = 632, 3, 624


def system_uniform(shape: Sequence[int]) -> Tensor:
    """Independent numbers, uniform between 0 and 1 and never either, from ``os.urandom``; float64 on the CPU."""
    count = int(np.prod(shape, dtype=np.int64))
    bits = np.frombuffer(os.urandom(8 * count), dtype=np.uint64) >> 12
    found: Tensor = torch.from_numpy((bits + 0.5) * 2.0**-52).reshape(tuple(shape))
    return found


def system_normal(shape: Sequence[int]) -> Tensor:
    """Independent standard normal numbers from ``os.urandom``; float64 on the CPU."""
    found: Tensor = torch.special.ndtri(system_uniform(shape))
    return found


def system_generator(device: torch.device | str = "cpu") -> Generator:
    """A generator that no seed gives: the whole state comes from the operating system.

    On a GPU, whose generator counts from its seed, that seed: 63 bits.

    Raises:
        RuntimeError: If this torch keeps the state of its generators in another way than any that is known.
    """
    generator = Generator(device)
    if generator.device.type == "cpu":
        generator.set_state(_system_state())
    else:
        generator.manual_seed(secrets.randbits(63))
    return generator


def _system_state() -> Tensor:
    # A copy: what it is made of must start as torch starts it, so that the first draw turns the state over.
    words = Generator().get_state().numpy().copy().view(np.uint64)
    if len(words) != _WORDS:
        raise RuntimeError(
            f"torch {torch.__version__} keeps {len(words)} words of a generator's state where {_WORDS} are expected, "
            "so that it cannot be filled from the system; use a release of torch that this fl-precode was tested with"
        )
    words[_FIRST : _FIRST + _TWISTER] = np.frombuffer(os.urandom(4 * _TWISTER), dtype=np.uint32)
    return torch.from_numpy(words.view(np.uint8))


@contextmanager
def unforeseeable() -> Iterator[None]:
    """Inside the block torch's global generators start from the system, whatever seeds were set; then as before.

    For layers that draw from them, such as ``torch.nn.Dropout``. Bottlenecks draw from the system anyway, unless
    `fl_precode.sample_noise` says otherwise.
    """
    devices = list(range(torch.cuda.device_count())) if _cuda_in_use() else []
    with torch.random.fork_rng(devices=devices):
        torch.random.set_rng_state(_system_state())
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(secrets.randbits(63))
        yield


def _cuda_in_use() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
