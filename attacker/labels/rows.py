"""Label of a single image from the rows of the classifier's weight gradient, whatever the features' signs."""

from __future__ import annotations

import torch
from torch import Tensor

from attacker.labels.evidence import classifier_gradient, known_batch_size
from attacker.victim import Victim
from fl_precode.observation import Observation


def row_label(victim: Victim, observation: Observation) -> Tensor | None:
    """The class whose row points against all others.

    Row c of one image is ``(p_c - [c = label]) h``: the label's row is minus the sum of the others, so that it is the
    longest one and all others point the other way, whether the features h are positive, negative or both. This holds
    without a bias, with one that pruning removed, and for what pruning or signs left of the rows.

    Args:
        victim: Public knowledge about the model.
        observation: A gradient, or any number of steps of plain SGD, of one image.

    Returns:
        (1,) label, or None when the rows are zero, or when two classes have as much of it: of two classes the rows
        are opposite and equally long.

    Raises:
        ValueError: If the update is not of one image, or labels cannot be read from this model or update
            (`classifier_gradient`).
    """
    clues = classifier_gradient(victim, observation)
    batch = known_batch_size(observation, method="rows")
    if batch != 1:
        raise ValueError(f"label recovery 'rows' finds the label of one image, and this update comes from {batch}")
    rows = clues.weight
    evidence = (rows * (rows.sum(dim=0) - 2 * rows)).sum(dim=1)
    least, second = torch.topk(evidence, 2, largest=False).values.tolist()
    if least == 0 or second <= least * (1 - 1e-6):
        return None
    return evidence.argmin().reshape(1)
