"""The victim's loss, replayed: what the clients minimised, as a function of weights, images, labels and noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor, nn
from torch.func import functional_call

from attacker.gradients.batch_norm import with_reference
from attacker.gradients.second_derivatives import twice_differentiable
from attacker.victim import Victim
from fl_precode.defences.precode import sample_noise


@dataclass(frozen=True)
class Replay:
    """The victim's loss as a function of weights, inputs, labels and noise.

    Attributes:
        victim: Public knowledge about the model.
        parameters: Weights at which gradients are replayed, by name.
        buffers: Buffers for the replay, by name; those left out keep the values of the victim's model.
    """

    victim: Victim
    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]

    def loss(
        self,
        parameters: Mapping[str, Tensor],
        inputs: Tensor,
        labels: Tensor,
        noise: Sequence[Tensor],
        batch_size: int | None = None,
    ) -> Tensor:
        """Training loss of one batch at ``parameters``, a scalar; shapes (batch, ...) as for the model.

        Of several batches, of ``batch_size`` images each, that stand one behind the other, the mean.
        """
        state = {f"model.{name}": value for name, value in (*self.buffers.items(), *parameters.items())}

        def called(values: dict[str, Tensor]) -> Tensor:
            source: AbstractContextManager[object] = sample_noise(values=list(noise)) if noise else nullcontext()
            with source:
                value: Tensor = functional_call(_VictimLoss(self.victim), values, (inputs, labels, batch_size))
            return value

        model = self.victim.model
        with twice_differentiable(model), with_reference(model, lambda: called(_constant(state))):
            return called(state)


class _VictimLoss(nn.Module):
    """The victim's loss as a module, because ``functional_call`` exchanges the weights of modules only."""

    def __init__(self, victim: Victim) -> None:
        super().__init__()
        self.model = victim.model
        self._victim = victim

    def forward(self, inputs: Tensor, labels: Tensor, batch_size: int | None) -> Tensor:
        return self._victim.training_loss(inputs, labels, batch_size)


def _constant(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in state.items()}


def by_victim(replay: Replay | Sequence[Replay], victims: int) -> list[Replay]:
    """One replay for each victim, ``victims`` times the same where they share it.

    Raises:
        ValueError: If there are more or fewer replays than victims.
    """
    if isinstance(replay, Replay):
        return [replay] * victims
    if len(replay) != victims:
        raise ValueError(f"expected one replay, or one for each of {victims} victims, got {len(replay)}")
    return list(replay)
