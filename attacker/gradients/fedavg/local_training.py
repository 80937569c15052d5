"""Local training of a client as it announces it: its mini-batches, in order, and its optimiser."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle, islice

from attacker.gradients.observed import steps_behind
from attacker.reasons import Reason, because
from fl_precode.observation import Observation


@dataclass(frozen=True, kw_only=True)
class LocalTraining:
    """A client's optimiser and its mini-batches, as the server assumes them.

    Attributes:
        batches: First and past-the-last image of every step.
        learning_rate: Learning rate of the local SGD.
        momentum: As in ``torch.optim.SGD``, without dampening.
        weight_decay: As in ``torch.optim.SGD``.
    """

    batches: tuple[tuple[int, int], ...]
    learning_rate: float
    momentum: float = 0.0
    weight_decay: float = 0.0

    @classmethod
    def announced(cls, observation: Observation) -> LocalTraining:
        """What the protocol says; an optimiser without announced momentum or weight decay is taken as plain SGD.

        The order of the images is not known. Candidates' images are assigned to the steps of a pass one after another,
        which only gives them their names, and every further pass repeats the first, which is a guess: clients that
        shuffle again form other batches then.

        Raises:
            ValueError: If `why_not_unrolled` has a reason.
        """
        reason = why_not_unrolled(observation)
        protocol, images = observation.protocol, observation.batch_size
        if reason is not None or images is None or protocol.learning_rate is None:
            raise ValueError(f"local training cannot be replayed: {reason}")
        size = min(protocol.batch_size or images, images)
        one_pass = [(first, min(first + size, images)) for first in range(0, images, size)]
        return cls(
            batches=tuple(islice(cycle(one_pass), steps_behind(observation))),
            learning_rate=protocol.learning_rate,
            momentum=protocol.momentum or 0.0,
            weight_decay=protocol.weight_decay or 0.0,
        )


def why_not_unrolled(observation: Observation) -> Reason | None:
    """Why the client's local training cannot be replayed, or None when enough was announced."""
    if observation.kind == "gradient":
        return because("one-gradient")
    protocol, images = observation.protocol, observation.batch_size
    if protocol.optimiser == "adam":
        return because("local-adam.replay")
    missing = []
    if images is None:
        missing.append("the number of images behind the update")
    if protocol.local_steps is None and protocol.local_epochs is None:
        missing.append("local steps or epochs")
    if protocol.learning_rate is None:
        missing.append("the learning rate")
    if protocol.batch_size is None and images != 1:
        missing.append("the images of one local step")
    return because("training-unknown", what=", ".join(missing)) if missing else None
