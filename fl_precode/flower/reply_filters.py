"""Filters of the whole reply in a client mod, as Flower's own are: every array, and what the server tells."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Final, cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message
from torch import Generator

from fl_precode.defences.flower_dp import CentralDp, clipped_reply
from fl_precode.defences.on_gradients import GradientDefence
from fl_precode.defences.registry import DefenceChain
from fl_precode.flower.recorder import looks_like_buffer

KEY_CLIPPING_NORM: Final = "clipping_norm"
KEY_NORM_BIT: Final = "norm_bit"
"""Flower's own words for a round's clip, in the config of a message, and for whether it was reached, in metrics."""


def filter_reply(
    message: Message,
    reply: Message,
    received: Mapping[str, np.ndarray],
    chain: DefenceChain,
    generator: Generator | None,
    buffers: Collection[str] | None,
) -> None:
    """Defend all arrays of a reply in place.

    Args:
        message: What the client was asked; a clip that it tells goes before that of the spec.
        reply: With one record of arrays.
        received: The arrays that the client was sent.
        chain: With a part that changes the whole reply.
        generator: Source of everything random; None for the operating system.
        buffers: Names of arrays that parts of another kind leave alone; None to go by their names and types.

    Raises:
        ValueError: If the reply cannot be defended.
    """
    key, record = next(iter(reply.content.array_records.items()))
    arrays = {name: array.numpy().copy() for name, array in record.items()}
    if len(reply.content.array_records) != 1 or arrays.keys() != received.keys():
        raise ValueError(
            "expected one ArrayRecord in the reply, under the names that were received, got "
            f"{len(reply.content.array_records)} with {sorted(arrays.keys() ^ received.keys())[:4]} on one side only; "
            'if the clients send gradients, say kind="gradient"'
        )
    chain = _as_told(chain, message)
    _tell_norm_bit(reply, received, arrays, chain)
    before, after = (
        {name: torch.from_numpy(np.asarray(record[name])) for name in arrays} for record in (received, arrays)
    )
    parameters = [
        name
        for name, value in arrays.items()
        if not (looks_like_buffer(name, value) if buffers is None else name in buffers)
    ]
    left = chain.on_reply(before, after, parameters=parameters, generator=generator)
    reply.content[key] = ArrayRecord({name: Array(value.numpy()) for name, value in left.items()})


def _as_told(chain: DefenceChain, message: Message) -> DefenceChain:
    """The chain with the clip that Flower's wrapper of the server sends along, where it is the clients that clip.

    Raises:
        ValueError: If the clip adapts and the server sends none.
    """
    told = [each[KEY_CLIPPING_NORM] for each in message.content.config_records.values() if KEY_CLIPPING_NORM in each]
    parts: list[GradientDefence] = []
    for part in chain.parts:
        if isinstance(part, CentralDp) and part.side == "client":
            if part.quantile and not told:
                raise ValueError(
                    "central-dp with a quantile clips by what the server says, and its message has no "
                    f"{KEY_CLIPPING_NORM!r}; wrap the strategy in DifferentialPrivacyClientSideAdaptiveClipping"
                )
            parts.append(replace(part, clip=float(cast(float, told[0]))) if told else part)
        else:
            parts.append(part)
    return DefenceChain(tuple(parts))


def _tell_norm_bit(
    reply: Message, received: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray], chain: DefenceChain
) -> None:
    """Say whether the update was clipped, from which Flower's adaptive wrapper chooses the next round's clip."""
    part = chain.parts[0]
    if isinstance(part, CentralDp) and part.side == "client" and part.quantile:
        clipped = clipped_reply(received, arrays, part.clip)[1]
        next(iter(reply.content.metric_records.values()))[KEY_NORM_BIT] = int(clipped)
