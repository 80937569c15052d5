"""The labels that an attack goes by when none were granted."""

from __future__ import annotations

import torch
from torch import Tensor

from attacker.labels.bias_corrected import bias_corrected_labels
from attacker.labels.counts import estimate_counts
from attacker.labels.evidence import ClassifierGradient, classifier_gradient, known_batch_size, labels_from_counts
from attacker.labels.probes import probe_classifier
from attacker.labels.registry import recover_labels
from attacker.victim import Victim
from fl_precode.observation import Observation

_Found = tuple[Tensor | None, str]

_MOST_NEGATIVE = 0.25
"""Share of the features' absolute sum up to which they count as not negative; GELU and leaky ReLU lie below."""


def best_labels(
    victim: Victim, observation: Observation, *, generator: torch.Generator, probes: int = 256
) -> tuple[Tensor | None, str]:
    """Labels by the most accurate method for a model and update (docs/explanation/labels.md), or why there are none.

    The order of preference, where a method that cannot apply or finds nothing leaves the turn to the next:

    1. One image: ``idlg``, which is exact with a bias; without one ``rows``, and of two classes ``idlg`` again.
    2. A classifier with a bias: ``counts``. But with fewer images than classes, where its estimate contradicts itself
       (`Counts.contradicts_itself`, as it does for trained models), ``bias-corrected`` first.
    3. ``bias-corrected``, which does without the scale of the update.
    4. A classifier without a bias, whose features are hardly ever negative on random inputs: ``llg-white-box``, then
       ``llg``, which does without the scale.

    A bias that pruning set to zero as a whole counts as none.

    A batch with repeated labels is the rule, so that ``unique`` and ``yin`` are never chosen. The same generator state
    gives the same answer.

    Args:
        victim: Public knowledge about the model.
        observation: A gradient, or any number of steps of plain SGD.
        generator: Source of the random inputs of the methods that probe the model.
        probes: Number of those inputs, 1 or more.

    Returns:
        (batch,) sorted labels and the name of the method in `LABEL_RECOVERY`; or None and a reason. Nothing that a
        foreign model or a damaged update does raises: it is a reason.
    """
    try:
        return _best(victim, observation, generator, probes)
    except ValueError as error:
        return None, str(error)
    except Exception as error:  # noqa: BLE001 - the model is foreign code, and labels are a means to an end
        return None, f"the model {victim.name!r} could not be run to recover labels: {type(error).__name__}: {error}"


def _best(victim: Victim, observation: Observation, generator: torch.Generator, probes: int) -> _Found:
    evidence = classifier_gradient(victim, observation)
    batch = known_batch_size(observation, method="best")
    if evidence.silent:
        return None, f"the gradient of the classifier {evidence.layer.name!r} is zero: no labels in it"
    if evidence.bias is None and (batch > 1 or evidence.classes == 2):
        probed = probe_classifier(victim, observation, evidence, generator=generator, probes=probes)
        if float(probed.negative) > _MOST_NEGATIVE:
            return None, (
                f"the classifier {evidence.layer.name!r} shows no bias gradient, and its features are negative as well "
                f"as positive (on random inputs {float(probed.negative):.0%} of their absolute sum is below zero): the "
                "signs of its gradient say nothing about labels"
            )

    reasons = []
    for method in _order(evidence, batch):
        try:
            labels, used = _attempt(method, victim, observation, generator, probes)
        except ValueError as error:
            reasons.append(str(error))
            continue
        if labels is not None:
            return labels, used
        reasons.append(f"label recovery {method!r} found no label in the update")
    return None, "; ".join(reasons)


def _order(evidence: ClassifierGradient, batch: int) -> tuple[str, ...]:
    if batch == 1:
        return ("idlg",) if evidence.bias is not None or evidence.classes == 2 else ("rows",)
    return ("llg-white-box", "llg") if evidence.bias is None else ("counts", "bias-corrected")


def _attempt(method: str, victim: Victim, observation: Observation, generator: torch.Generator, probes: int) -> _Found:
    if method != "counts":
        return recover_labels(method, victim, observation, generator=generator, probes=probes), method
    counts = estimate_counts(victim, observation, generator=generator, probes=probes)
    if counts is None:
        return None, method
    if counts.contradicts_itself and int(counts.whole.sum()) < len(counts.whole):
        labels = bias_corrected_labels(victim, observation)
        if labels is not None:
            return labels, "bias-corrected"
    return labels_from_counts(counts.whole), method
