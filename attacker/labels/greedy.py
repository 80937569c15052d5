"""The greedy loop that LLG and its relatives share: read off one label, take back what it contributed."""

from __future__ import annotations

import torch
from torch import Tensor

from attacker.labels.evidence import labels_from_counts


def read_off(evidence: Tensor, *, impact: float, offset: Tensor | float, batch: int) -> Tensor:
    """Labels of a batch from a value for each class that falls with the number of its images.

    First every class with a negative value is taken once, then the offset is subtracted and the smallest value is taken
    until the batch is full. Whenever a class is taken, the impact is taken back from **that class only**: subtracting
    it anywhere else leaves the smallest value smallest, and one class swallows the rest of the batch.

    Args:
        evidence: (classes,), negative for classes that are surely in the batch.
        impact: Negative, what one image adds to the value of its class.
        offset: (classes,) or 0, the value of a class without images.
        batch: Number of labels; of more negative classes than that the most negative are taken.

    Returns:
        (batch,) sorted labels.

    >>> read_off(torch.tensor([-5.0, 1.0, -1.0]), impact=-2.0, offset=0.0, batch=4).tolist()
    [0, 0, 0, 2]
    """
    order = torch.argsort(evidence, stable=True)
    counts = torch.zeros(evidence.shape, dtype=torch.int64, device=evidence.device)
    counts[order[: min(batch, int((evidence < 0).sum()))]] = 1
    remaining = evidence - impact * counts - offset
    for _ in range(batch - int(counts.sum())):
        smallest = torch.argmin(remaining)
        counts[smallest] += 1
        remaining[smallest] -= impact
    return labels_from_counts(counts)
