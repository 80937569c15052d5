"""Observation: one client update as an honest-but-curious server sees it, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from torch import Tensor

from fl_precode.assumption import Assumption

Gradients = Mapping[str, Tensor]
"""Parameter name to a tensor of the parameter's shape; gradients are addressed by name, never by position."""

UpdateKind = Literal["gradient", "weights"]

CROSS_ENTROPY: Final = "cross-entropy"
"""The announced loss that attacks replay: its mean over the batch, of the class scores."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Public knowledge about a client's work in one round.

    Attributes:
        name: ``fedsgd`` (gradient of one batch) or ``fedavg`` (local training), or a foreign app's own word.
        local_steps: Optimiser steps between the received and the sent weights; None when not announced.
        local_epochs: Passes over the local data; None when not announced or when steps are fixed.
        learning_rate: Learning rate of the local optimiser (fedavg) or of the server (fedsgd); None when not announced.
        defence: The announced defence spec, ``none`` without one; None when not announced.
        batch_size: Images of one step, fewer where a client has fewer; None when not announced.
        momentum: Momentum of the local optimiser, as in ``torch.optim.SGD`` without dampening; None when not announced.
        weight_decay: Weight decay of the local optimiser, as in ``torch.optim.SGD``; None when not announced.
        batch_norm: How clients normalise while they compute gradients: ``batch``, by the images of the batch, as
            ``model.train()`` does; or ``buffers``, by the running statistics that were sent; None when not announced.
        optimiser: Optimiser of the local steps, ``sgd`` or ``adam``; None when not announced, which attacks take as
            SGD.
        loss: What the local steps minimise, ``cross-entropy`` or another word; None when not announced, which attacks
            take as cross-entropy.
    """

    name: str = "unknown"
    local_steps: int | None = None
    local_epochs: int | None = None
    learning_rate: float | None = None
    defence: str | None = None
    batch_size: int | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    batch_norm: Literal["batch", "buffers"] | None = None
    optimiser: Literal["sgd", "adam"] | None = None
    loss: str | None = None

    def images_behind(self, examples: int) -> int | None:
        """Distinct images behind the update of a client that trains on ``examples`` images.

        Epochs use all of them. Steps of an announced batch size go through permutations of the images by whole batches,
        as `fl_precode.data.schedule` draws them: one pass uses an image once; how many images more than one pass
        touches is certain only where the batches divide the images.

        Args:
            examples: ``num-examples`` of the client's reply, which the server needs for its weighted mean.

        Returns:
            The number, or None when what was announced does not determine it.

        >>> Protocol(local_steps=3, batch_size=2).images_behind(10)
        6
        >>> Protocol(local_steps=30, batch_size=2).images_behind(10)
        10
        """
        if self.local_epochs is not None:
            return examples
        if self.local_steps is None or self.batch_size is None:
            return None
        size = min(self.batch_size, examples)
        if self.local_steps <= examples // size:
            return self.local_steps * size
        return examples if examples % size == 0 else None

    def steps_on(self, images: int) -> int | None:
        """Optimiser steps that a client with ``images`` images makes; None when what was announced does not say.

        The last batch of an epoch may be smaller than the announced size.
        """
        if self.local_steps is not None:
            return self.local_steps
        size = 1 if images == 1 else self.batch_size
        if self.local_epochs is None or size is None:
            return None
        return self.local_epochs * -(-images // size)


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One client update as the server legitimately holds it.

    Attributes:
        parameters: Tensors that the server sent in this round and whose change is known, by name.
        buffers: What else of the model the server sent, by name: its buffers, and the parameters in ``frozen``.
        update: The client's gradient (kind ``gradient``), or sent-by-client minus received (kind ``weights``), by
            parameter name.
        kind: What ``update`` is.
        batch_size: Distinct images behind the whole update, whatever the number of steps and epochs that used them;
            None when the protocol does not reveal it. Images of one local step: ``protocol.batch_size``.
        protocol: What the server knows of the client's work.
        round: Round of the federation, from 1.
        node: Flower's node id as text. It is random and says nothing about the data.
        frozen: Names among ``buffers`` of parameters of the model whose change is not known or is none: layers that the
            client does not train, and those that it does not send. They are constants, never equations.
        assumptions: What was guessed to make this of the client's reply.
        returned: Buffers as they were after the client's work, by name: the returned ones, running statistics of
            batch normalisation above all. Empty where none were returned.
    """

    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    update: Gradients
    kind: UpdateKind
    batch_size: int | None
    protocol: Protocol
    round: int
    node: str
    frozen: frozenset[str] = frozenset()
    assumptions: tuple[Assumption, ...] = ()
    returned: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.update.keys() != self.parameters.keys():
            odd = sorted(self.update.keys() ^ self.parameters.keys())
            raise ValueError(f"expected one update for each parameter, by name; these are on one side only: {odd}")
        for name, value in self.update.items():
            if value.shape != self.parameters[name].shape:
                raise ValueError(
                    f"expected the update of {name!r} to have its parameter's shape "
                    f"{tuple(self.parameters[name].shape)}, got {tuple(value.shape)}"
                )
        if absent := sorted(self.frozen - self.buffers.keys()):
            raise ValueError(f"expected the values of frozen parameters among the buffers; absent: {absent}")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"expected a positive batch size or None, got {self.batch_size}")
