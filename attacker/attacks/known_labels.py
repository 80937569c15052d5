"""The labels that an attack goes by: those that it was granted, or those that it recovers from the update."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from attacker.attacks.randomness import derived
from attacker.labels import best_labels
from attacker.victim import Victim
from fl_precode.observation import Observation

Known = tuple[Tensor | None, str]
"""Labels (batch,), or None; and the method that found them, "granted", or the reason why there are none."""


def known_labels(
    victim: Victim,
    observations: Sequence[Observation],
    granted: Sequence[Tensor | None],
    generators: Sequence[Generator],
) -> list[Known]:
    """Labels for each observation, in order.

    Args:
        victim: Public knowledge about the model.
        observations: Updates.
        granted: Labels that the threat model grants, (batch,) each; None has them recovered.
        generators: One for each observation; it gives one seed, from which the observation's labels are recovered.

    Raises:
        ValueError: If granted labels are not one for each image, or no classes of the model.
    """
    known: list[Known] = []
    for observation, labels, generator in zip(observations, granted, generators, strict=True):
        (source,) = derived(generator, 1)
        size = observation.batch_size
        if labels is not None:
            numbers = victim.label_numbers
            checked = labels if size is None else check_labels(labels, batch_size=size, classes=numbers)
            known.append((checked, "granted"))
        else:
            known.append(best_labels(victim, observation, generator=source))
    return known


def check_labels(labels: Tensor, *, batch_size: int, classes: int) -> Tensor:
    """Granted labels as int64 (batch,), checked.

    Raises:
        ValueError: If there is not one for each image, or one is no class of the model.
    """
    if labels.shape != (batch_size,):
        raise ValueError(
            f"expected granted labels of shape ({batch_size},), one for each image of the batch, "
            f"got {tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"expected granted labels to be whole numbers (int64), got {labels.dtype}")
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(f"expected granted labels from 0 to {classes - 1}, got {labels.tolist()}")
    return labels.long()
