"""A client's defended work: the one place where a defence meets a gradient."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from fl_precode.defences.on_gradients import Batch
from fl_precode.defences.registry import DefenceChain
from fl_precode.local_training import batch_gradient, local_training
from fl_precode.loss import Loss
from fl_precode.privacy.canaries import Inserted
from fl_precode.privacy.canary_entrance import as_examples, in_update


def defended_gradient(
    model: nn.Module,
    batch: Batch,
    defence: DefenceChain | None,
    generator: Generator | None,
    *,
    batch_norm: str = "batch",
    loss: Loss | None = None,
    canaries: Inserted | None = None,
) -> tuple[dict[str, Tensor], float]:
    """FedSGD: the gradient of one batch as it leaves the client; see `batch_gradient`.

    A defence changes what is trained: frozen parameters are sent as zeros, without noise that would move them. Without
    a generator it draws from the operating system, and nobody can take its noise away again. Canaries go through the
    defence as the images do.
    """
    gradients, value = batch_gradient(model, batch, batch_norm=batch_norm, loss=loss)
    if defence is not None or canaries is not None:
        own = in_update({name: gradients[name] for name in _trained(model)}, defence, canaries)
        defended = as_examples(defence, canaries)
        if defended is not None:
            own = defended(own, model=model, batch=batch, generator=generator)
        gradients = {**gradients, **own}
    return gradients, value


def defended_training(
    model: nn.Module,
    batches: Sequence[Batch],
    defence: DefenceChain | None,
    generator: Generator | None,
    *,
    learning_rate: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    optimiser: str = "sgd",
    batch_norm: str = "batch",
    loss: Loss | None = None,
    canaries: Inserted | None = None,
) -> float:
    """FedAvg: local training whose steps and whose update are defended, in place.

    What belongs to a step (Soteria, DP-SGD) changes each step's gradient; the rest changes the update, trained minus
    received weights, once. Buffers are left as training made them, but for filters of the whole reply, such as
    `fl_precode.defences.flower_dp.LocalDp`. Without a generator the defence draws from the operating system. Canaries
    are examples of every step where DP-SGD clips examples, else a part of the update.

    Returns:
        Mean loss over the steps, in nats.
    """
    of_update = defence.of_update() if defence is not None else None
    received = copy.deepcopy(model) if of_update is not None or canaries is not None else None
    of_steps = as_examples(defence.of_steps(), canaries) if defence is not None else None
    defend = _StepDefence(of_steps, generator) if of_steps is not None else None
    mean = local_training(
        model,
        batches,
        learning_rate=learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        optimiser=optimiser,
        batch_norm=batch_norm,
        defend=defend,
        loss=loss,
    )
    if canaries is not None and received is not None:
        _enter(received, model, canaries, defence)
    if of_update is not None and received is not None and of_update.filters_reply:
        _filter_reply(received, model, of_update, batches[0], generator)
    elif of_update is not None and received is not None:
        before, after = dict(received.named_parameters()), dict(model.named_parameters())
        with torch.no_grad():
            update = {name: after[name] - before[name] for name in _trained(model)}
        update = of_update(update, model=received, batch=batches[0], generator=generator)
        with torch.no_grad():
            for name, value in update.items():
                after[name].copy_(before[name] + value)
    return mean


def _filter_reply(
    received: nn.Module, trained: nn.Module, defence: DefenceChain, batch: Batch, generator: Generator | None
) -> None:
    """Put what a defence of the whole reply leaves in the place of all that was trained, buffers included."""
    sent = {name: value.clone() for name, value in trained.state_dict().items()}
    reply = defence.on_reply(
        received.state_dict(), sent, parameters=_trained(trained), model=received, batch=batch, generator=generator
    )
    trained.load_state_dict(reply)


@torch.no_grad()
def _enter(received: nn.Module, trained: nn.Module, canaries: Inserted, defence: DefenceChain | None) -> None:
    """Put canaries into the trained weights, before the update's defences; none where the steps have them."""
    before, after = dict(received.named_parameters()), dict(trained.named_parameters())
    update = {name: after[name] - before[name] for name in _trained(trained)}
    for name, value in in_update(update, defence, canaries).items():
        after[name].copy_(before[name] + value)


def _trained(model: nn.Module) -> list[str]:
    return [name for name, value in model.named_parameters() if value.requires_grad]


class _StepDefence:
    """Replaces the gradients that a backward pass has left on a model."""

    def __init__(self, defence: DefenceChain, generator: Generator | None) -> None:
        self._defence = defence
        self._generator = generator

    def __call__(self, model: nn.Module, batch: Batch) -> None:
        named = {name: p for name, p in model.named_parameters() if p.grad is not None}
        gradients = {name: p.grad for name, p in named.items() if p.grad is not None}
        for name, value in self._defence(gradients, model=model, batch=batch, generator=self._generator).items():
            named[name].grad = value
