"""What is read from updates that no search can answer: size, length, normalisation statistics, bounds of labels."""

from __future__ import annotations

import math
from typing import Final

from attacker.audit.federations.federation import Federation
from attacker.audit.record.schema import UpdateReading, finite
from attacker.audit.settings import AuditSettings
from attacker.gradients.observed import steps_behind
from attacker.labels.evidence import classifier_gradient
from attacker.optim.deadline import time_is_up
from attacker.reasons import Reason, because
from attacker.victim import Victim
from fl_precode.observation import Observation

_MOST_UPDATES: Final = 4
_ROUNDING: Final = 0.05
"""Images that rounding may add."""


def readings(own: Federation, settings: AuditSettings) -> list[UpdateReading]:
    """What the first few attacked updates say without a search; fewer where a deadline comes.

    Args:
        own: The federation.
        settings: Say what the attacker knows.
    """
    found: list[UpdateReading] = []
    for entry in own.entries[:_MOST_UPDATES]:
        seen = settings.knowledge.of(own.subject.tape.load(entry), own.subject.defence)
        at_least, why_no_labels = fewest_of_each_class(own.subject.victim, seen)
        found.append(
            UpdateReading(
                round=seen.round,
                node=seen.node,
                images=seen.batch_size,
                steps=steps_behind(seen),
                numbers=sum(one.numel() for one in seen.update.values()),
                norm=finite(float(sum(one.double().square().sum() for one in seen.update.values()) ** 0.5)),
                statistics=_statistics(seen),
                at_least=at_least,
                why_no_labels=str(why_no_labels),
                why_codes=list(why_no_labels.codes),
            )
        )
        if time_is_up():
            break
    return found


def fewest_of_each_class(victim: Victim, seen: Observation) -> tuple[list[int], Reason]:
    """Images of each class that there are at least, or no figures and the reason.

    The gradient of the classifier's bias is the mean of ``p_c - y_c`` with probabilities p that are not negative: from
    it follows what cannot be less, without an estimate of p. A smaller last batch of each epoch counts as if all of
    it were of the class. It holds for plain SGD on cross-entropy.
    """
    try:
        found = classifier_gradient(victim, seen)
    except Exception as error:  # the model is foreign code, and this is a gift
        return [], because("labels-unread", error=str(error) or type(error).__name__)
    protocol, images = seen.protocol, seen.batch_size
    steps, step = found.steps, protocol.batch_size or (images if seen.kind == "gradient" else None)
    if found.bias is None or found.why_unscaled is not None or images is None or steps is None or step is None:
        return [], found.why_unscaled or because("labels-unread.bias")
    if protocol.momentum or protocol.optimiser == "adam":
        return [], because("labels-unread.optimiser")
    epochs = protocol.local_epochs or max(1, math.ceil(steps * step / images))
    short = epochs if steps > 1 else 0
    counts = [math.ceil(step * (-steps * mean - short) / epochs - _ROUNDING) for mean in found.bias.tolist()]
    return [min(max(0, one), images) for one in counts], Reason("")


def _statistics(seen: Observation) -> int:
    """Layers whose running mean, of the features of the client's images, is on the tape."""
    return sum(name.endswith("running_mean") for name in seen.buffers)
