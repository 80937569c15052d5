"""Readings of updates that no search can answer: size, length, normalisation statistics, bounds of labels."""

from __future__ import annotations

import math
from typing import Final

from attacker.audit.federations.federation import AuditedFederation
from attacker.audit.record.schema import UpdateReading, finite
from attacker.audit.settings import AuditSettings
from attacker.gradients.observed import steps_behind
from attacker.gradients.returned_statistics import returned_statistics
from attacker.labels.evidence import classifier_gradient
from attacker.optim.deadline import time_is_up
from attacker.reasons import Reason, because
from attacker.victim import Victim
from fl_precode.observation import Observation

_MOST_UPDATES: Final = 4
_ROUNDING: Final = 0.05
"""Images that rounding may add."""


def readings(federation: AuditedFederation, settings: AuditSettings) -> list[UpdateReading]:
    """What the first few attacked updates say without a search; fewer where a deadline comes.

    Args:
        federation: The federation.
        settings: Say what the attacker knows.
    """
    update_readings: list[UpdateReading] = []
    for entry in federation.entries[:_MOST_UPDATES]:
        observation = settings.knowledge.of(federation.subject.tape.load(entry), federation.subject.defence)
        at_least, why_no_labels = fewest_of_each_class(federation.subject.victim, observation)
        update_readings.append(
            UpdateReading(
                round=observation.round,
                node=observation.node,
                images=observation.batch_size,
                steps=steps_behind(observation),
                numbers=sum(tensor.numel() for tensor in observation.update.values()),
                norm=finite(
                    float(sum(tensor.double().square().sum() for tensor in observation.update.values()) ** 0.5)
                ),
                statistics=_statistics(observation),
                batch_statistics=_batch_statistics(federation.subject.victim, observation),
                at_least=at_least,
                why_no_labels=str(why_no_labels),
                why_codes=list(why_no_labels.codes),
            )
        )
        if time_is_up():
            break
    return update_readings


def fewest_of_each_class(victim: Victim, observation: Observation) -> tuple[list[int], Reason]:
    """Images of each class that there are at least, or no figures and the reason.

    The gradient of the classifier's bias is the mean of ``p_c - y_c`` with probabilities p that are not negative: from
    it follows what cannot be less, without an estimate of p. A smaller last batch of each epoch counts as if all of
    it were of the class. It holds for plain SGD on cross-entropy.
    """
    try:
        gradient = classifier_gradient(victim, observation)
    except Exception as error:  # the model is foreign code, and this is a gift
        return [], because("labels-unread", error=str(error) or type(error).__name__)
    protocol, images = observation.protocol, observation.batch_size
    steps, step = gradient.steps, protocol.batch_size or (images if observation.kind == "gradient" else None)
    if gradient.bias is None or gradient.why_unscaled is not None or images is None or steps is None or step is None:
        return [], gradient.why_unscaled or because("labels-unread.bias")
    if protocol.momentum or protocol.optimiser == "adam":
        return [], because("labels-unread.optimiser")
    epochs = protocol.local_epochs or max(1, math.ceil(steps * step / images))
    short = epochs if steps > 1 else 0
    counts = [math.ceil(step * (-steps * mean - short) / epochs - _ROUNDING) for mean in gradient.bias.tolist()]
    return [min(max(0, count), images) for count in counts], Reason("")


def _statistics(observation: Observation) -> int:
    """Layers whose running mean, of the features of the client's images, is on the tape."""
    return sum(name.endswith("running_mean") for name in observation.buffers)


def _batch_statistics(victim: Victim, observation: Observation) -> int:
    """Layers whose mean and variance over the client's batch follow exactly from the returned buffers."""
    found = returned_statistics(victim.model, observation)
    return 0 if isinstance(found, Reason) else sum(layer.of_one_batch for layer in found.values())
