"""What one client update reveals to an honest-but-curious server, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Gradients = Mapping[str, Tensor]
"""Parameter name to a tensor of the parameter's shape; gradients are addressed by name, never by position."""

UpdateKind = Literal["gradient", "weights"]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What every party of the federation knows about a client's work in one round.

    Attributes:
        name: ``fedsgd`` (gradient of one batch) or ``fedavg`` (local training), or a foreign app's own word.
        local_steps: Optimiser steps between the received and the sent weights; None when not announced.
        local_epochs: Passes over the local data; None when not announced or when steps are fixed.
        learning_rate: Of the local optimiser (fedavg) or of the server (fedsgd); None when not announced.
        defence: The announced defence spec, ``none`` without one; None when not announced.
    """

    name: str = "unknown"
    local_steps: int | None = None
    local_epochs: int | None = None
    learning_rate: float | None = None
    defence: str | None = None


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One client update as the server legitimately holds it.

    Attributes:
        parameters: Trainable tensors that the server sent in this round, by name.
        buffers: Buffers that the server sent, by name.
        update: The client's gradient (kind ``gradient``), or sent-by-client minus received (kind ``weights``), by
            parameter name.
        kind: What ``update`` is.
        batch_size: Images behind the update; None when the protocol does not reveal it. Of T local steps with B images
            each these are T * B, where an image that comes again counts again; with announced epochs, the images of one
            pass.
        protocol: What the server knows of the client's work.
        round: Of the federation, from 1.
        node: Flower's node id as text. It is random and says nothing about the data.
    """

    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    update: Gradients
    kind: UpdateKind
    batch_size: int | None
    protocol: Protocol
    round: int
    node: str

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
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"expected a positive batch size or None, got {self.batch_size}")
