"""The same attack on the same update with the numbers of each tensor shuffled: what it makes of no image at all.

Only where few other updates could be compared with, and only for formulas, which take seconds. A search of an hour
would take another hour here, and what it makes of nothing is a plain image, with which everything is compared.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import torch

from attacker.attacks.base import Outcome, Reconstruction
from attacker.audit.execution.attack_job import Chunk, Found, run_chunk, seed_of
from attacker.audit.scoring.placebos import FEWEST_COMPARED
from attacker.optim.deadline import within
from fl_precode.observation import Observation

DRAWS: Final = FEWEST_COMPARED
"""Updates without the image that a formula is tried on: other ones, and for want of them shuffled ones."""

MOST_SECONDS: Final = 10.0
"""Of all shuffled updates of an audit. What is not done by then is left out."""


def attack_shuffled(
    chunks: Sequence[Chunk], results: Found, others: Mapping[tuple[str, str], int], *, seconds: float = MOST_SECONDS
) -> dict[tuple[str, str, str], list[Reconstruction]]:
    """What formulas make of shuffled updates, by federation, attack and file of the update.

    Args:
        chunks: Chunks of the audit.
        results: What the attacks found, by the same key.
        others: How many other updates each one is compared with, by federation and file; it has no truth where it is
            missing, and is passed over.
        seconds: That may be taken, at most.
    """
    made: dict[tuple[str, str, str], list[Reconstruction]] = {}
    left = seconds
    for chunk in chunks:
        for target in chunk.targets:
            result = results.get((chunk.federation, chunk.attack, target.file))
            draws = DRAWS - others.get((chunk.federation, target.file), DRAWS)
            if draws <= 0 or result is None or not _is_formula(result) or result.seconds * draws > left:
                continue
            began = time.monotonic()
            tried = _tried(replace(chunk, targets=(target,), pieces=1), draws, left)
            left -= time.monotonic() - began
            if tried is not None:
                made[chunk.federation, chunk.attack, target.file] = tried
    return made


def _tried(alone: Chunk, draws: int, seconds: float) -> list[Reconstruction] | None:
    """What a formula makes of each shuffled update; None where there is no time for all.

    Equations without a solution take longer to solve than those of the update, and shuffling 86 million numbers takes
    seconds as well: whether there is time shows after the first.
    """
    tried: list[Reconstruction] = []
    began = time.monotonic()
    with within(seconds) as deadline:
        for draw in range(draws):
            if tried and (time.monotonic() - began) / len(tried) * draws > seconds:
                return None
            tried += run_chunk(alone, change=partial(shuffled, draw=draw))
    return None if deadline.cut else tried


def _is_formula(reconstruction: Reconstruction) -> bool:
    return (
        reconstruction.inputs is not None
        and reconstruction.iterations == 0
        and reconstruction.outcome is Outcome.CONVERGED
    )


def shuffled(observation: Observation, draw: int) -> Observation:
    """The update with the numbers within each tensor in another order: as large, and of no image.

    Args:
        observation: The update.
        draw: Other draws, other orders.
    """
    update = {}
    for name, value in observation.update.items():
        generator = torch.Generator().manual_seed(seed_of("shuffled", observation.round, observation.node, name, draw))
        order = torch.randperm(value.numel(), generator=generator).to(value.device)
        update[name] = value.flatten()[order].view_as(value)
    return replace(observation, update=update)
