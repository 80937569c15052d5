"""Replay of a client's local training: unrolled SGD steps, differentiable with respect to the images."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

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
from attacker.gradients.fedavg.factored_sgd import FactoredTraining, why_not_factored_training
from attacker.gradients.fedavg.local_training import LocalTraining
from attacker.gradients.observed import in_gradient_units
from attacker.gradients.replay import Replay
from attacker.gradients.select import possible
from attacker.gradients.trace import Trace
from fl_precode.observation import Observation


class Unrolled(ClientUpdate):
    """Weights after local SGD on a candidate's images minus weights before, on the scale of one gradient.

    Unrolled as in Geiping et al. (NeurIPS 2020, section 6, "federated averaging") and Dimitrov et al. (TMLR 2022).
    Memory and time grow with the number of steps. A bottleneck's noise, where it is given, is one draw for each image
    and the same in all steps.

    Args:
        replay: The victim's loss at the weights that the clients received.
        observation: Observation of one of them; it announces the training.

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
        units: Units of each victim, by parameter name, what updates are divided by; None for 1.

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
    """Products of local training in the fastest way that is exact for the model.

    By factors (`FactoredTraining`) for plain SGD on models of Linear layers, else with updates that are formed
    (`LocalTrainingProducts`), for all candidates at once or one by one.

    Args:
        replay: The victim's loss at the weights that the clients received.
        observations: One for each victim, of the same problem.
        trace: A trace of the victim's model.
        matched: Names of the parameters that count; None for all.
        elements: Which elements of the update count, and how; None compares all, by inner products.
        units: Units of each victim, by parameter name, what updates are divided by; None for 1.

    Raises:
        ValueError: If the protocol does not announce enough, or the model is not twice differentiable.
    """

    def build(way: str, replay: Replay, observations: Sequence[Observation]) -> GradientProducts:
        if way == "factored":
            return FactoredTraining(replay, observations, trace)
        chosen_units = None if units is None else units[: len(observations)]  # a probe looks at the first victim only
        return LocalTrainingProducts(
            replay, observations, vmapped=way == "vmap", matched=matched, elements=elements, units=chosen_units
        )

    ways: dict[str, Callable[[], str | None]] = {"vmap": possible}
    if matched is None and elements is None and units is None:
        ways = {"factored": lambda: why_not_factored_training(replay, observations[0], trace), **ways}
    way = fastest_of(build, ways, replay, observations, trace, decided_by=("unrolled", elements, tuple(ways)))
    return build(way, replay, observations)
