"""Labels by trial, for updates that show none, or whose classifier's gradient was altered."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from attacker.attacks.base import Outcome, Reconstruction
from attacker.attacks.defence_names import SCALING
from attacker.labels import label_hypotheses
from attacker.labels.evidence import classifier_gradient
from attacker.reasons import because, joined
from attacker.victim import Victim
from fl_precode.defences.in_model import ModelDefence
from fl_precode.defences.registry import DEFENCES, defence_parts
from fl_precode.observation import Observation


def labels_to_try(victim: Victim, observation: Observation, recovered: Tensor | None) -> list[Tensor]:
    """All labels that the update may have, where none were recovered or what was recovered may be wrong.

    Recoveries read numbers of images off the sizes of a gradient, which pruning, signs and noise change. The label of
    one image is read off its sign, which they leave. Empty where labels are known, or too many are possible.

    Args:
        victim: Public knowledge about the model.
        observation: The update, of a known batch size.
        recovered: (batch,) labels, or None.
    """
    batch = observation.batch_size or 1
    if recovered is not None and (batch == 1 or not _altered(victim, observation)):
        return []
    if victim.label_numbers > victim.inputs.classes:  # an image may have any set of classes
        return []
    return label_hypotheses(classes=victim.inputs.classes, batch=batch)


def _altered(victim: Victim, observation: Observation) -> bool:
    """Whether the classifier's gradient is not that of a loss any more, as was announced or as it shows."""
    try:
        parts = {part.name for part in defence_parts(observation.protocol.defence or "none")}
    except ValueError:  # announced in nobody's terms but the client's
        parts = set()
    kinds = [DEFENCES[name].settings for name in parts - SCALING if name in DEFENCES]
    if any(not issubclass(kind, ModelDefence) for kind in kinds):
        return True
    return classifier_gradient(victim, observation).altered


def with_trial(result: Reconstruction, trial: Reconstruction | None, reason: str) -> Reconstruction:
    """A result with the work of the trial of labels before it, and why there was one.

    Args:
        result: With the labels of the trial.
        trial: The best of all labels; None where none were tried.
        reason: Why labels were not recovered, or by which method they were.
    """
    if trial is None:
        return result
    words = because("labels-tried", why=reason)
    return replace(
        result,
        reason=joined([result.reason, words]),
        seconds=result.seconds + trial.seconds,
        iterations=result.iterations + trial.iterations,
    )


def without_labels(reason: str) -> Reconstruction:
    """The result for an update whose labels a fitting search does not find: its images were not reconstructed."""
    words = because("labels-unknown", why=reason)
    return Reconstruction(inputs=None, labels=None, outcome=Outcome.ITERATION_LIMIT, reason=words)
