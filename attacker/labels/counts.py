"""Number of images of each class from the bias gradient and the model's mean probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacker.labels.evidence import check_scaled, classifier_gradient, known_batch_size, labels_from_counts
from attacker.labels.probes import probe_classifier
from attacker.victim import Victim
from fl_precode.observation import Observation

_ROUNDING = 0.05  # images; what rounding and faint noise may add to a count that is certain


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Images of each class, estimated and rounded.

    Attributes:
        raw: (classes,), ``batch * (p_c - db_c)``; whole numbers where p_c is right.
        whole: (classes,) int64, not negative, that sum to the batch size.
    """

    raw: Tensor
    whole: Tensor

    @property
    def contradicts_itself(self) -> bool:
        """Whether a class was given half an image more or less than estimated, so that the estimate cannot be right."""
        return float((self.raw - self.whole).abs().max()) > 0.5


def count_labels(
    victim: Victim, observation: Observation, *, generator: torch.Generator, probes: int = 256
) -> Tensor | None:
    """Labels, repetitions included, from ``n_c = batch * (p_c - db_c)``.

    The bias gradient of mean cross-entropy is exactly ``db_c = mean(p_c) - n_c / batch``. Only the mean probabilities
    p_c on the client's images are unknown; they are estimated on random inputs at the weights that the server sent.
    So do Geng et al., "Towards General Deep Leakage in Federated Learning", 2021 (arXiv 2110.09074), restore repeated
    labels. Counts are rounded by largest remainder, so that they sum to the batch size.

    What needs no estimate is kept whatever the probes say: p_c is not negative, so ``n_c >= -batch * db_c``.

    Of T local steps the update's bias part over ``-(learning rate * T)`` is the mean of the steps' gradients, and the
    same equation holds for all images behind the update, each counted once, where p_c belongs to each step's own
    weights: it is interpolated between the weights that were sent and the returned ones (`probe_classifier`). It is
    exact when all images were used equally often, in equal batches and without momentum; else in the mean over orders.

    Assumes: softmax cross-entropy on the classifier's outputs; a classifier with a bias; probabilities on random inputs
    that are on average those on the client's images, to within ``1 / (2 batch)``: so before training, less and less
    during it. Features may have any sign.

    Args:
        victim: Public knowledge about the model.
        observation: A gradient, or announced steps of plain SGD at an announced learning rate, of a known batch size.
        generator: Source of the random inputs.
        probes: Number of random inputs, 1 or more.

    Returns:
        (batch,) sorted labels, or None when the gradient is zero: then the model is sure of all its labels, and nothing
        says which these are.

    Raises:
        ValueError: If the classifier has no bias, the batch size or the scale is unknown, or labels cannot be read from
            this model or update (`classifier_gradient`).
    """
    counts = estimate_counts(victim, observation, generator=generator, probes=probes)
    return None if counts is None else labels_from_counts(counts.whole)


def estimate_counts(
    victim: Victim, observation: Observation, *, generator: torch.Generator, probes: int = 256
) -> Counts | None:
    """What `count_labels` rests on, with the same arguments and errors; None when the gradient is zero."""
    clues = classifier_gradient(victim, observation)
    batch = known_batch_size(observation, method="counts")
    check_scaled(clues, method="counts")
    if clues.bias is None:
        raise ValueError(
            f"label recovery 'counts' needs a bias in the classifier {clues.layer.name!r}; 'llg-white-box' does without"
        )
    probed = probe_classifier(victim, observation, clues, generator=generator, probes=probes)
    if clues.silent:
        return None
    # Bounded before the cast, where numbers beyond int64 would come out as any other number.
    certain = (-batch * clues.bias - _ROUNDING).ceil().clamp(min=0, max=batch + 1).long()
    if int(certain.sum()) > batch:  # only noise on the update can claim that
        certain = torch.zeros_like(certain)
    raw = batch * (probed.probabilities - clues.bias)
    return Counts(raw=raw, whole=round_counts(raw, at_least=certain, total=batch))


def round_counts(raw: Tensor, *, at_least: Tensor, total: int) -> Tensor:
    """Whole counts that sum to ``total``, nearest to ``raw`` in squared distance among those that are large enough.

    Images are dealt out one by one to the class that lacks most. Where ``raw`` has no negative numbers, sums to
    ``total`` and nothing else is asked for, this is the method of the largest remainder.

    Args:
        raw: (classes,), estimated counts.
        at_least: (classes,) int64, not negative, at most ``total`` together.
        total: 0 or more.

    Returns:
        (classes,) int64.

    >>> round_counts(torch.tensor([2.6, 0.7, -0.3]), at_least=torch.tensor([0, 0, 0]), total=3).tolist()
    [2, 1, 0]
    >>> round_counts(torch.tensor([2.6, 0.7, -0.3]), at_least=torch.tensor([0, 0, 1]), total=3).tolist()
    [2, 0, 1]
    """
    counts = at_least.clone()
    for _ in range(total - int(counts.sum())):
        counts[torch.argmax(raw - counts)] += 1
    return counts
