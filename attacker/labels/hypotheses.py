"""All labels that an update may have, where they are few enough to try each."""

from __future__ import annotations

from itertools import combinations_with_replacement
from math import comb
from typing import Final

import torch
from torch import Tensor

MOST: Final = 20
"""Hypotheses that are tried for one update; each costs a short search."""


def label_hypotheses(*, classes: int, batch: int) -> list[Tensor]:
    """Every possible labels of a batch, (batch,) sorted, in no order of likelihood; none where they are more than 20.

    >>> [one.tolist() for one in label_hypotheses(classes=2, batch=2)]
    [[0, 0], [0, 1], [1, 1]]
    >>> len(label_hypotheses(classes=10, batch=1)), len(label_hypotheses(classes=10, batch=2))
    (10, 0)
    """
    if comb(classes + batch - 1, batch) > MOST:
        return []
    return [torch.tensor(labels) for labels in combinations_with_replacement(range(classes), batch)]
