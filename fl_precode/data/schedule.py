"""Schedule of a client's samples: a pure function of seed, client and round.

Clients draw from it, and evaluation recomputes the truth from it; nothing needs to be recorded on the way.
"""

from __future__ import annotations

import numpy as np


def local_batches(
    samples: np.ndarray,
    *,
    seed: int,
    partition_id: int,
    round: int,
    batch_size: int,
    local_steps: int = 0,
    local_epochs: int = 0,
) -> list[np.ndarray]:
    """The batches of one client in one round.

    Args:
        samples: Indices of the client's samples, not empty.
        seed: Seed of the federation.
        partition_id: Partition index of the client.
        round: Round of the federation.
        batch_size: Samples in a batch; a client with fewer uses all it has.
        local_steps: That many batches, going through fresh permutations one after another.
        local_epochs: That many passes; the last batch of a pass may be smaller. With both zero: one batch (FedSGD).

    Returns:
        Arrays of sample indices, no sample twice in one batch.

    Raises:
        ValueError: If there are no samples, a number is negative, or both steps and epochs are given.
    """
    if not len(samples) or batch_size < 1:
        raise ValueError(f"expected samples and a positive batch size, got {len(samples)} and {batch_size}")
    if local_steps < 0 or local_epochs < 0:
        raise ValueError(f"expected no negative local_steps or local_epochs, got {local_steps} and {local_epochs}")
    if local_steps and local_epochs:
        raise ValueError(f"expected local_steps or local_epochs, got both: {local_steps} and {local_epochs}")
    rng = np.random.default_rng((seed, partition_id, round))
    size = min(batch_size, len(samples))
    if local_epochs:
        return [batch for _ in range(local_epochs) for batch in _pass(samples, size, rng)]
    wanted = local_steps or 1
    batches: list[np.ndarray] = []
    while len(batches) < wanted:
        # Only whole batches, so that every step has the announced size.
        batches += [batch for batch in _pass(samples, size, rng) if len(batch) == size]
    return batches[:wanted]


def _pass(samples: np.ndarray, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    shuffled = rng.permutation(samples)
    return [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
