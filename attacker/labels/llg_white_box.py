"""LLG with the impact of one image and the offset of each class measured on the model."""

from __future__ import annotations

import torch
from torch import Tensor

from attacker.labels.evidence import check_scaled, classifier_gradient, known_batch_size
from attacker.labels.greedy import read_off
from attacker.labels.probes import probe_classifier
from attacker.victim import Victim
from fl_precode.observation import Observation


def llg_white_box_labels(
    victim: Victim, observation: Observation, *, generator: torch.Generator, probes: int = 256
) -> Tensor | None:
    """Labels, repetitions included, by LLG* with the model at hand, which a server always has.

    Wainakh et al., "User-Level Label Leakage from Gradients", PoPETs 2022 (arXiv 2105.09369). As `llg_labels`, but
    measured on random inputs: the offset s_c, the row sum that a class without images has, and the impact of one image.
    The paper measures the impact on dummy batches of one class and corrects it by ``1 + 1 / classes``; here it is what
    that approximates, minus the mean sum of the features over the batch size. So the method is exact for a model that
    answers all inputs alike.

    Assumes: softmax cross-entropy; features before the classifier that are not negative; that the model treats random
    inputs much as the client's images, which is so before training and less and less during it.

    Args:
        victim: Public knowledge about the model.
        observation: A gradient, or announced steps of plain SGD at an announced learning rate, of a known batch size.
        generator: Source of the random inputs.
        probes: Number of random inputs, 1 or more.

    Returns:
        (batch,) sorted labels, or None when the gradient is zero.

    Raises:
        ValueError: If the features are not positive on average, the batch size or the scale is unknown, or labels
            cannot be read from this model or update (`classifier_gradient`).
    """
    evidence = classifier_gradient(victim, observation)
    batch = known_batch_size(observation, method="llg-white-box")
    check_scaled(evidence, method="llg-white-box")
    probed = probe_classifier(victim, observation, evidence, generator=generator, probes=probes)
    if evidence.silent:
        return None
    impact = -float(probed.features) / batch
    if impact >= 0:
        raise ValueError(
            "label recovery 'llg-white-box' needs features before the classifier that are positive on average, as "
            f"after ReLU or sigmoid; their sum is {float(probed.features):.3g} on random inputs. "
            "'counts' needs a bias instead"
        )
    return read_off(evidence.row_sums, impact=impact, offset=probed.offsets, batch=batch)
