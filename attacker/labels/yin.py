"""Labels of a batch without repetitions, from the most negative entry of each row (GradInversion)."""

from __future__ import annotations

import torch
from torch import Tensor

from attacker.labels.evidence import classifier_gradient, known_batch_size
from attacker.victim import Victim
from fl_precode.observation import Observation


def yin_labels(victim: Victim, observation: Observation) -> Tensor | None:
    """The classes whose rows of the weight gradient have the most negative minima, one for each image.

    Yin et al., "See through Gradients", CVPR 2021 (arXiv 2104.07586). One image of class c pushes its whole
    row down in proportion to its features; the minimum lets the strongest feature speak where the other images, which
    push the row up, do not have it.

    Assumes: softmax cross-entropy; distinct labels; features before the classifier that are not negative (ReLU,
    sigmoid). The scale of the update does not matter.

    Args:
        victim: Public knowledge about the model.
        observation: A gradient, or any number of steps of plain SGD, of a known batch size.

    Returns:
        (batch,) sorted labels, all different, or None when the gradient is zero.

    Raises:
        ValueError: If there are more images than classes, the batch size is unknown, or labels cannot be read from this
            model or update (`classifier_gradient`).
    """
    clues = classifier_gradient(victim, observation)
    batch = known_batch_size(observation, method="yin")
    if batch > clues.classes:
        raise ValueError(
            f"label recovery 'yin' gives each class at most once; {batch} images of {clues.classes} classes repeat some"
        )
    if clues.silent:
        return None
    order = torch.argsort(clues.weight.amin(dim=1), stable=True)
    return order[:batch].sort().values
