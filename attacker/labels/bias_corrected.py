"""LLG's greedy loop on the bias gradient, which needs no assumption on features."""

from __future__ import annotations

from torch import Tensor

from attacker.labels.evidence import classifier_gradient, known_batch_size
from attacker.labels.greedy import read_off
from attacker.victim import Victim
from fl_precode.observation import Observation


def bias_corrected_labels(victim: Victim, observation: Observation) -> Tensor | None:
    """Labels, repetitions included, from the bias gradient alone.

    The variant of LLG (Wainakh et al., PoPETs 2022, arXiv 2105.09369) in the toolbox "breaching" (Geiping et al.,
    strategy ``bias-corrected``): each class with a negative bias gradient is taken once, and one image counts as the
    sum of the negative values divided by the batch size.

    Assumes: softmax cross-entropy; a classifier with a bias; an untrained model, whose probabilities are about equal.
    The features may have any sign. One image really weighs ``-1 / batch``; where most classes are in the batch the
    estimate is too small in size. The scale of the update does not matter.

    Args:
        victim: Public knowledge about the model.
        observation: A gradient, or any number of steps of plain SGD, of a known batch size.

    Returns:
        (batch,) sorted labels, or None when no bias gradient is negative, as for a gradient of zeros.

    Raises:
        ValueError: If the classifier has no bias, the batch size is unknown, or labels cannot be read from this model
            or update (`classifier_gradient`).
    """
    clues = classifier_gradient(victim, observation)
    batch = known_batch_size(observation, method="bias-corrected")
    if clues.bias is None:
        raise ValueError(
            f"label recovery 'bias-corrected' needs a bias in the classifier {clues.layer.name!r}; 'llg' does without"
        )
    impact = float(clues.bias.clamp(max=0).sum()) / batch
    return read_off(clues.bias, impact=impact, offset=0.0, batch=batch) if impact else None
