"""Label of a single image from the classifier's gradient (iDLG)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attacker.gradients.trace import LayerRun
from fl_precode.observation import Gradients


def idlg_label(classifier: LayerRun | None, gradient: Gradients, *, classes: int) -> Tensor | None:
    """The class whose classifier gradient is negative (Zhao, Mopuri, Bilen 2020, arXiv 2001.02610).

    With softmax cross-entropy and ONE image the gradient with respect to logit c is ``p_c - [c = label]``: negative for
    the label only; that of one logit for two classes is negative for the second. The bias gradient shows it as it is.
    Without a bias the sum of each row of the weight gradient is used, ``(p_c - [c = label]) * sum(h)``, which assumes
    that the features h before the classifier are not negative (sigmoid, ReLU) and not all zero. Of several negative
    values, as after added noise, the smallest wins.

    Args:
        classifier: The last Linear layer in order of execution (`attacker.gradients.trace.Trace.last_linear`).
        gradient: A gradient, not an update of weights, by parameter name.
        classes: Number of classes.

    Returns:
        (1,) label, or None when there is no Linear layer with one output for each class, or when its gradient is zero
        or is not in the update.
    """
    if classifier is None or not isinstance(classifier.module, nn.Linear):
        return None
    rows = classifier.module.out_features
    if rows != classes and (rows, classes) != (1, 2):
        return None
    prefix = f"{classifier.name}." if classifier.name else ""
    bias, weight = gradient.get(f"{prefix}bias"), gradient.get(f"{prefix}weight")
    if bias is None and weight is None:  # it did not move
        return None
    per_class = bias if weight is None or bias is not None else weight.sum(dim=1)
    assert per_class is not None
    if not bool((per_class != 0).any()):
        return None
    return torch.argmin(per_class if rows > 1 else torch.cat([-per_class, per_class])).reshape(1)
