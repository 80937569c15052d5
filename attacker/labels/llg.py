"""Label Leakage from Gradients: repeated labels from the row sums of the classifier's weight gradient."""

from __future__ import annotations

from torch import Tensor

from attacker.labels.evidence import classifier_gradient, known_batch_size
from attacker.labels.greedy import read_off
from attacker.victim import Victim
from fl_precode.observation import Observation


def llg_labels(victim: Victim, observation: Observation) -> Tensor | None:
    """Labels, repetitions included, from the gradient alone (LLG, without an offset).

    Wainakh et al., "User-Level Label Leakage from Gradients", PoPETs 2022 (arXiv 2105.09369). With r_c the sum of row c
    of the weight gradient, one image of class c contributes ``m = (1 + 1 / classes) / batch * sum of the negative r_c``
    to r_c. Every class with a negative r_c is taken once and m taken back from it, then the smallest again and again.

    Assumes: softmax cross-entropy; features before the classifier that are not negative and of similar sum in all
    images; an untrained model, whose probabilities are about equal. Where most classes are in the batch few r_c are
    negative and m comes out too small in size. The scale of the update does not matter.

    Args:
        victim: Public knowledge about the model.
        observation: A gradient, or any number of steps of plain SGD, of a known batch size.

    Returns:
        (batch,) sorted labels, or None when no row sum is negative, as for a gradient of zeros.

    Raises:
        ValueError: If the batch size is unknown, or labels cannot be read from this model or update
            (`classifier_gradient`).
    """
    evidence = classifier_gradient(victim, observation)
    batch = known_batch_size(observation, method="llg")
    impact = (1 + 1 / evidence.classes) / batch * float(evidence.row_sums.clamp(max=0).sum())
    if impact == 0:
        return None
    return read_off(evidence.row_sums, impact=impact, offset=0.0, batch=batch)
