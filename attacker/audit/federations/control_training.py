"""The control of a trained model: what is left without its bottleneck is trained on, until it is as well trained.

A bottleneck that is cut out of trained weights leaves layers that were never trained together: such a model is at
chance and leaks otherwise than one that clients without the defence would have. Evaluation only: it takes true images.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from attacker.audit.record.schema import ControlRound, finite
from attacker.audit.truth.base import Truth
from attacker.optim.deadline import time_is_up
from fl_precode.local_training import set_training
from fl_precode.loss import Loss
from fl_precode.models.input_spec import InputSpec
from fl_precode.observation import Observation
from fl_precode.randomness.seeding import seeded

_logger = logging.getLogger(__name__)

NEAR: Final = 0.1
"""Share of the defended model's loss by which that of the control may differ; where that is below half a nat, of it."""

MOST_STEPS: Final = 1_000
"""Steps of training at most, for one round; the number does not depend on the machine as long as the seconds last."""

SECONDS: Final = 10.0
"""For all rounds of one federation."""

MOST_IMAGES: Final = 2_048
"""Images that are trained on."""

_MEASURED, _NUMBERS = 256, 2**22
"""Images at most that the loss is measured on, and numbers in them."""

_BATCH, _EVERY, _RATE = 64, 10, 1e-3


@dataclass
class ControlTraining:
    """Gives the undefended model of each round, trained where cutting the bottleneck out untrained it.

    Attributes:
        defended: The defended model, for its structure.
        known: True images and labels that the evaluation has; at most `MOST_IMAGES` are used.
        inputs: Domain of the images, with the clients' scale.
        batch_norm: What the clients normalise by.
        loss: What they minimise, without the penalty of bottlenecks; None for cross-entropy.
        seconds: For all rounds. Where they end before the steps do, another machine may get other controls.
        rounds: What was done in each round, filled by `at`.
    """

    defended: nn.Module
    known: Truth
    inputs: InputSpec
    batch_norm: str = "batch"
    loss: Loss | None = None
    seconds: float = SECONDS
    rounds: list[ControlRound] = field(default_factory=list)
    _before: dict[str, Tensor] | None = None

    def __post_init__(self) -> None:
        count = len(self.known.images)
        chosen = _evenly(count, MOST_IMAGES)
        self._images = self.inputs.normalise(self.known.images[chosen])
        self._labels = self.known.labels[chosen]
        most = min(_MEASURED, _NUMBERS // self._images[0].numel())
        self._measured = _evenly(len(chosen), max(most, 1))

    def at(self, observation: Observation, cut: nn.Module) -> nn.Module:
        """The undefended model of a round, for rounds in order.

        Args:
            observation: An update of the round, with what the server sent.
            cut: The undefended model with the weights that were sent; may be trained in place.

        Returns:
            ``cut`` as it is where it is as well trained as the defended model.
        """
        self._labels, self._images = self._labels.to(_place(cut)), self._images.to(_place(cut))
        goal, cut_loss = self._loss(_filled(self.defended, observation)), self._loss(cut)
        steps, loss = 0, cut_loss
        if not near(cut_loss, goal):
            if self._before is not None:
                self._continue(cut, cut_loss, goal)
            steps, loss = self._train(cut, goal)
            self._before = {name: value.detach().clone() for name, value in cut.state_dict().items()}
        self.rounds.append(
            ControlRound(
                round=observation.round,
                defended_loss=finite(goal),
                cut_loss=finite(cut_loss),
                loss=finite(loss),
                steps=steps,
            )
        )
        return cut

    def _continue(self, cut: nn.Module, cut_loss: float, goal: float) -> None:
        """Begin with the last round's control where that is nearer: an undefended federation would go on from there."""
        assert self._before is not None
        sent = {name: value.detach().clone() for name, value in cut.state_dict().items()}
        frozen = {name for name, value in cut.named_parameters() if not value.requires_grad}
        cut.load_state_dict({**self._before, **{name: sent[name] for name in frozen}})
        if abs(self._loss(cut) - goal) > abs(cut_loss - goal):
            cut.load_state_dict(sent)

    def _train(self, model: nn.Module, goal: float) -> tuple[int, float]:
        """Train until the loss is near the goal; the model keeps the weights at which it was nearest.

        Returns:
            Steps behind those weights, and their loss.
        """
        began = time.perf_counter()
        loss = best = self._loss(model)
        best_steps, kept = 0, deepcopy(model.state_dict())
        trained = [value for value in model.parameters() if value.requires_grad]
        optimiser = torch.optim.Adam(trained, lr=_RATE)
        order = Generator().manual_seed(0)
        with seeded(0):
            for step in range(1, MOST_STEPS + 1):
                if near(best, goal) or loss < goal or not trained:  # below it, training only leads away
                    break
                if time.perf_counter() - began > self.seconds or (step > 1 and time_is_up()):
                    _logger.warning("the control's training ended after %d steps, by its seconds", step - 1)
                    break
                self._step(model, optimiser, order)
                loss = self._loss(model) if step % _EVERY == 0 else loss
                if abs(loss - goal) < abs(best - goal):
                    best, best_steps, kept = loss, step, deepcopy(model.state_dict())
        model.load_state_dict(kept)
        self.seconds = max(0.0, self.seconds - (time.perf_counter() - began))
        return best_steps, best

    def _step(self, model: nn.Module, optimiser: torch.optim.Optimizer, order: Generator) -> None:
        set_training(model, self.batch_norm)
        few = torch.randperm(len(self._labels), generator=order)[:_BATCH].to(self._labels.device)
        optimiser.zero_grad()
        torch.autograd.backward((self.loss or F.cross_entropy)(model(self._images[few]), self._labels[few]))
        optimiser.step()

    @torch.no_grad()
    def _loss(self, model: nn.Module) -> float:
        """Mean loss in nats as in training, on some of the images; the model is left as it is."""
        trial, total = deepcopy(model), 0.0
        set_training(trial, self.batch_norm)
        with seeded(1):
            for few in torch.split(self._measured, _BATCH):
                logits = trial(self._images[few])
                if self.loss is None:
                    total += float(F.cross_entropy(logits, self._labels[few], reduction="sum"))
                else:
                    total += float(self.loss(logits, self._labels[few])) * len(few)
        return total / len(self._measured)


def near(loss: float, goal: float) -> bool:
    """Whether a model is as well trained as another one.

    >>> near(0.52, 0.5), near(2.3, 0.5), near(0.04, 0.01)
    (True, False, True)
    """
    return abs(loss - goal) <= NEAR * max(goal, 0.5)


def _evenly(count: int, most: int) -> Tensor:
    some = min(count, most)
    return torch.arange(some) * count // some


def _filled(model: nn.Module, observation: Observation) -> nn.Module:
    sent: Mapping[str, Tensor] = {**observation.parameters, **observation.buffers}
    filled = deepcopy(model)
    filled.load_state_dict(dict(sent), strict=False)
    return filled


def _place(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
