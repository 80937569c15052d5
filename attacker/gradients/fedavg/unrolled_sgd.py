"""Replay of a client's local training: unrolled SGD steps, differentiable with respect to the images."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice

import torch
from torch import Tensor

from attacker.gradients.base import GradientProducts
from attacker.gradients.distances import Elements
from attacker.gradients.fedavg.explicit_update import (
    ClientUpdate,
    FormedProducts,
    ObservedUpdates,
    fastest_of,
    form_each,
    targets_of,
    weight_gradient,
)
from attacker.gradients.observed import in_gradient_units, steps_behind
from attacker.gradients.replay import Replay
from attacker.gradients.select import possible
from attacker.gradients.trace import Trace
from attacker.reasons import Reason, because
from fl_precode.observation import Observation


@dataclass(frozen=True, kw_only=True)
class LocalTraining:
    """A client's optimiser and its mini-batches, as the server assumes them.

    Attributes:
        batches: First and past-the-last image of every step.
        learning_rate: Of the local SGD.
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


class Unrolled(ClientUpdate):
    """Weights after local SGD on a candidate's images minus weights before, on the scale of one gradient.

    Unrolled as in Geiping et al. (NeurIPS 2020, section 6, "federated averaging") and Dimitrov et al. (TMLR 2022).
    Memory and time grow with the number of steps. A bottleneck's noise, where it is given, is one draw for each image
    and the same in all steps.

    Args:
        replay: The victim's loss at the weights that the clients received.
        observation: Of one of them; it announces the training.

    Raises:
        ValueError: If the protocol does not announce enough (`why_not_unrolled`).
    """

    def __init__(self, replay: Replay, observation: Observation) -> None:
        self._replay, self._observation = replay, observation
        self._training = LocalTraining.announced(observation)

    def form(self, candidates: Tensor, labels: Tensor, noise: Sequence[Tensor], *, vmapped: bool) -> dict[str, Tensor]:
        """See `ClientUpdate.form`."""
        vmapped = vmapped and candidates.shape[:2].numel() > 1  # a single candidate gains nothing
        train = partial(self._change, vmapped=vmapped)
        change = form_each(train, candidates, labels, list(noise), vmapped=vmapped)
        return in_gradient_units(change, self._observation)

    def _change(self, x: Tensor, y: Tensor, noise: Sequence[Tensor], *, vmapped: bool) -> dict[str, Tensor]:
        """Weights after training on one candidate (images, ...) minus weights before, by ``torch.optim.SGD``'s rule."""
        training = self._training
        start = {name: value.detach() for name, value in self._replay.parameters.items()}
        change = {name: torch.zeros_like(value) for name, value in start.items()}
        velocity: dict[str, Tensor] | None = None
        for first, last in training.batches:
            weights = {name: value + change[name] for name, value in start.items()}
            eps = [value[first:last] for value in noise]
            step = weight_gradient(self._replay, weights, x[first:last], y[first:last], eps, vmapped=vmapped)
            if training.weight_decay:
                step = {name: value.add(weights[name], alpha=training.weight_decay) for name, value in step.items()}
            if training.momentum and velocity is not None:
                step = {name: value.add(velocity[name], alpha=training.momentum) for name, value in step.items()}
            velocity = step
            change = {name: value.sub(step[name], alpha=training.learning_rate) for name, value in change.items()}
        return change


class LocalTrainingProducts(FormedProducts):
    """Products of the update that local SGD on a candidate's images would give with the observed one (`Unrolled`).

    Both updates are taken to the scale of one gradient by `in_gradient_units`, so that distances compare with those of
    other replays.

    Args:
        replay: The victim's loss at the weights that the clients received.
        observations: One for each victim, of the same problem (`group_observations`).
        vmapped: All candidates at once, as far as torch's batching rules are right (`local_training_products` compares
            first), or one after another.
        matched: Names of the parameters that count; None for all.
        elements: Which elements of the update count, and how; None compares all, by inner products.
        units: Of each victim, by parameter name, what updates are divided by; None for 1.

    Raises:
        ValueError: If the protocol does not announce enough (`why_not_unrolled`).
    """

    def __init__(
        self,
        replay: Replay,
        observations: Sequence[Observation],
        *,
        vmapped: bool,
        matched: Collection[str] | None = None,
        elements: Elements | None = None,
        units: Sequence[Mapping[str, float]] | None = None,
    ) -> None:
        update = Unrolled(replay, observations[0])
        observed = ObservedUpdates(targets_of(observations, elements), matched, elements, units)
        super().__init__(update, observed, vmapped=vmapped)


def local_training_products(
    replay: Replay,
    observations: Sequence[Observation],
    trace: Trace,
    *,
    matched: Collection[str] | None = None,
    elements: Elements | None = None,
    units: Sequence[Mapping[str, float]] | None = None,
) -> GradientProducts:
    """`LocalTrainingProducts` for all candidates at once where that is exact for the model, else one by one.

    Args:
        replay: The victim's loss at the weights that the clients received.
        observations: One for each victim, of the same problem.
        trace: A trace of the victim's model.
        matched: Names of the parameters that count; None for all.
        elements: Which elements of the update count, and how; None compares all, by inner products.
        units: Of each victim, by parameter name, what updates are divided by; None for 1.

    Raises:
        ValueError: If the protocol does not announce enough, or the model is not twice differentiable.
    """

    def build(way: str, replay: Replay, observations: Sequence[Observation]) -> GradientProducts:
        chosen_units = None if units is None else units[: len(observations)]  # a probe looks at the first victim only
        return LocalTrainingProducts(
            replay, observations, vmapped=way == "vmap", matched=matched, elements=elements, units=chosen_units
        )

    way = fastest_of(build, {"vmap": possible}, replay, observations, trace, decided_by=("unrolled", elements))
    return build(way, replay, observations)
