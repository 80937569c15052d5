"""Random numbers of experiments: every purpose has a source of its own, so that none shifts another's."""

from __future__ import annotations

import hashlib

import torch

from attacker.attacks.randomness import derived


def whole_seed(*identity: int | str) -> int:
    """A seed of its own for every identity."""
    return int.from_bytes(hashlib.sha256(repr(identity).encode()).digest()[:7], "big")


def generator(*identity: int | str) -> torch.Generator:
    """A CPU generator of its own for every identity."""
    return torch.Generator().manual_seed(whole_seed(*identity))


def seeds(*identity: int | str, count: int) -> list[int]:
    """Seeds of a number of updates, as an attack would draw them from the identity's generator."""
    return [source.initial_seed() for source in derived(generator(*identity), count)]
