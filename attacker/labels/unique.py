"""Labels of a batch without repetitions, from the signs of the classifier's gradient."""

from __future__ import annotations

from torch import Tensor

from attacker.labels.evidence import classifier_gradient
from attacker.victim import Victim
from fl_precode.observation import Observation


def unique_labels(victim: Victim, observation: Observation) -> Tensor | None:
    """Every class whose classifier gradient is negative, for a batch in which no label repeats.

    The generalisation of iDLG's sign rule (Zhao, Mopuri, Bilen 2020, arXiv 2001.02610) to batches. The bias gradient of
    class c is ``mean(p_c) - n_c / batch`` and a probability is never negative, so a negative value proves that the
    class is there. The converse holds only where the model gives the class less than ``1 / batch`` on average.

    Assumes: softmax cross-entropy; distinct labels; a model not yet confident in the classes of the batch; without a
    bias also that the features before the classifier are not negative. Needs neither the batch size nor the scale.

    Args:
        victim: Public knowledge about the model.
        observation: A gradient, or any number of steps of plain SGD.

    Returns:
        (batch,) sorted labels; None when the gradient is zero, or when the number of negative classes is not the batch
        size, which says that a label repeats or that the model is confident.

    Raises:
        ValueError: If labels cannot be read from this model or update (`classifier_gradient`).
    """
    evidence = classifier_gradient(victim, observation)
    labels = (evidence.per_class < 0).nonzero().flatten()
    if not len(labels) or (observation.batch_size is not None and len(labels) != observation.batch_size):
        return None
    return labels
