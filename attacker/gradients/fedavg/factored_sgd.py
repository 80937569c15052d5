"""Local SGD replayed by factors: no weight of a candidate is formed, however many images and restarts there are.

A step moves a layer's weights by a sum of outer products of what it received and of the gradients of its output. So
the output of a layer in a later step is that at the weights that were sent, plus what those few factors make of its
input (`WeightChange`), and the sum of all steps' gradients is the gradient of one batch that holds the images of all
steps. Its products with the observed update are those of `FactoredProducts`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Self

import torch
from torch import Tensor, nn

from attacker.gradients.base import GradientProducts, Products
from attacker.gradients.fedavg.local_training import LocalTraining
from attacker.gradients.ghost.ghost import FactoredProducts, Passes, serves_one_by_one, why_not_factored
from attacker.gradients.ghost.layer_kinds import Forward, WeightChange, layer_runs, name_in_model, plain_kind
from attacker.gradients.ghost.patched_forward import shadowed
from attacker.gradients.ghost.weights_by_victim import ExchangedLayers, VictimLayers
from attacker.gradients.observed import observed_gradient
from attacker.gradients.replay import Replay
from attacker.gradients.trace import LayerRun, Trace
from fl_precode.observation import Observation


def why_not_factored_training(replay: Replay, observation: Observation, seen: Trace) -> str | None:
    """Reason why local training cannot be replayed by factors, or None when it may.

    Args:
        replay: The victim's loss at the weights that were sent.
        observation: An update; it announces the training.
        seen: A trace of the victim's model.
    """
    training = LocalTraining.announced(observation)
    if training.momentum or training.weight_decay:
        return "momentum and weight decay move weights by more than gradients"
    runs = layer_runs(seen)
    moving = {name_in_model(run, name) for run in runs if _moves(run) for name in _parameters(run)}
    if still := sorted(dict(replay.victim.model.named_parameters()).keys() - moving):
        return f"{still[0]} belongs to no layer whose change is known from factors"
    if fixed := sorted(moving - observation.update.keys()):
        return f"{fixed[0]} is in no update, and does not move"
    return why_not_factored(replay.victim.model, seen)


def _moves(run: LayerRun) -> bool:
    kind = plain_kind(run.module)
    return kind is not None and kind.change(run.module, 1) is not None


def _parameters(run: LayerRun) -> list[str]:
    kind = plain_kind(run.module)
    names = () if kind is None else kind.parameters
    return [name for name in names if getattr(run.module, name, None) is not None]


class FactoredTraining(GradientProducts):
    """Products of what plain SGD on a candidate's images sends with the observed update, on the scale of one gradient.

    The same as `attacker.gradients.fedavg.unrolled_sgd.LocalTrainingProducts`, for models of Linear layers. Kernels of
    convolutions are small: forming them for every candidate was measured to cost less than their factors.

    Args:
        replay: The victim's loss at the weights that the clients received.
        observations: One for each victim, of the same problem (`group_observations`).
        seen: A trace of the victim's model.

    Raises:
        ValueError: If the protocol does not announce enough (`why_not_unrolled`).
    """

    def __init__(self, replay: Replay, observations: Sequence[Observation], seen: Trace) -> None:
        self._training = LocalTraining.announced(observations[0])
        images = sum(last - first for first, last in self._training.batches)
        large = serves_one_by_one(seen, images)
        sent = VictimLayers.of(seen, [replay], large=large)
        modules = {run.name: run.module for run in layer_runs(seen) if _moves(run)}
        self._layers = MovedLayers(sent, modules, self._training.learning_rate)
        targets = [observed_gradient(observation) for observation in observations]
        self._products = FactoredProducts(replay, targets, seen, batch_size=images, layers=self._layers)

    def __call__(self, candidates: Tensor, labels: Tensor, noise: Sequence[Tensor] = ()) -> Products:
        """Products for every candidate, ``batch`` being all images of the client; see `GradientProducts.__call__`."""
        labels = labels.expand(candidates.shape[:3])
        count = candidates.shape[:2].numel()
        steps = self._training.batches
        with self._layers.from_the_start(count):
            passes: list[Passes] = []
            for number, (first, last) in enumerate(steps, start=1):
                drawn = [value[:, :, first:last] for value in noise]
                passes.append(self._products.passed(candidates[:, :, first:last], labels[:, :, first:last], drawn))
                if number < len(steps):
                    self._layers.move(passes[-1])
        return self._products.of(_one_batch(passes, count), candidates)

    def keep(self, victims: Sequence[int], restarts: Sequence[Sequence[int]] | None = None) -> Self:
        """Products for some of the candidates; see `GradientProducts.keep`."""
        kept = copy(self)
        kept._products = self._products.keep(victims, restarts)
        assert isinstance(kept._products.layers, MovedLayers)
        kept._layers = kept._products.layers
        return kept


class MovedLayers(ExchangedLayers):
    """Layers at the weights that candidates reach in local training.

    Args:
        sent: The layers at the weights that the clients received.
        modules: Layers that move, by name.
        learning_rate: Learning rate of the local SGD.
    """

    def __init__(self, sent: VictimLayers, modules: Mapping[str, nn.Module], learning_rate: float) -> None:
        self._sent, self._modules, self._rate = sent, modules, learning_rate
        self._changes: dict[str, WeightChange] = {}
        self._has_moved: set[str] = set()

    @contextmanager
    def from_the_start(self, candidates: int) -> Iterator[None]:
        """Inside the block a number of candidates train; before and afterwards no weight has moved."""
        self._has_moved = set()
        for name, module in self._modules.items():
            kind = plain_kind(module)
            change = None if kind is None else kind.change(module, candidates)
            assert change is not None  # no other layer is among them
            self._changes[name] = change
        try:
            yield
        finally:
            self._changes, self._has_moved = {}, set()

    def move(self, passes: Passes) -> None:
        """Take one step of SGD."""
        for name, (received, delta) in passes.items():
            self._changes[name] = self._changes[name].moved(received, delta)
            self._has_moved.add(name)

    @contextmanager
    def installed(self, candidates: Tensor) -> Iterator[Mapping[str, Tensor]]:
        """Every candidate has the weights that it reached."""
        with self._sent.exchanged():
            forwards = {name: module.forward for name, module in self._modules.items()}
        moved = {self._modules[name]: self._forward(forwards[name], self._changes[name]) for name in self._has_moved}
        with shadowed(moved), self._sent.installed(candidates) as copies:
            yield copies

    def keep(self, victims: Sequence[int], restarts: Sequence[Sequence[int]] | None) -> Self:
        """The same for some of the candidates: all of them start anew whenever they train."""
        kept = copy(self)
        kept._sent = self._sent.keep(victims, restarts)
        kept._changes = {}
        return kept

    def _forward(self, at_sent: Forward, change: WeightChange) -> Forward:
        def forward(received: Tensor) -> Tensor:
            out: Tensor = torch.sub(at_sent(received), change(received), alpha=self._rate)
            return out

        return forward


def _one_batch(steps: Sequence[Passes], candidates: int) -> Passes:
    """The passes of all steps as those of one batch, on the scale of one gradient: the mean of the steps' gradients."""
    names = {name for passes in steps for name in passes}
    whole: dict[str, tuple[Tensor, Tensor]] = {}
    for name in names:
        pairs = [passes[name] for passes in steps if name in passes]
        received = _together([pair[0] for pair in pairs], candidates)
        whole[name] = received, _together([pair[1] for pair in pairs], candidates) / len(steps)
    return whole


def _together(values: Sequence[Tensor], candidates: int) -> Tensor:
    """Each candidate's rows of all steps, one step behind the other."""
    each = [value.reshape(candidates, -1, *value.shape[1:]) for value in values]
    return torch.cat(each, dim=1).flatten(0, 1)
