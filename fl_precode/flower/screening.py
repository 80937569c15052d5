"""A strategy wrapper that names, counts and leaves out replies that must not reach the aggregate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from logging import WARNING

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fl_precode.flower.aggregate import in_sent_types
from fl_precode.flower.fingerprint import FINGERPRINT_KEY, PARTITION_KEY, REPLY_RECORD
from fl_precode.flower.senders import Senders

LARGEST = 1e10
"""Of a weight or a gradient. Means of more would overflow float32 a few rounds later, and take the model with them."""


class NoUsableReplies(RuntimeError):
    """A round ended without a single update that may be aggregated. The run must fail, loudly."""


@dataclass(frozen=True, kw_only=True)
class LeftOutReply:
    """A reply that was not aggregated, and why."""

    node: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class RoundReplies:
    """What became of one round's replies.

    Attributes:
        usable: Node to partition id, where the client told it (evaluation only), else -1.
        left_out: The others.
    """

    usable: dict[str, int] = field(default_factory=dict)
    left_out: list[LeftOutReply] = field(default_factory=list)


class ScreenedReplies(Strategy):
    """Wraps a strategy; only sound replies reach it, in an order that does not depend on who answered first.

    Args:
        strategy: The strategy that aggregates.
        fingerprint: Code fingerprint that each client must report; empty accepts any.
    """

    def __init__(self, strategy: Strategy, *, fingerprint: str = "") -> None:
        self.strategy = strategy
        self.fingerprint = fingerprint
        self.rounds: dict[int, RoundReplies] = {}
        self._sent: dict[str, tuple[tuple[int, ...], str]] = {}
        self._senders = Senders()

    def summary(self) -> None:
        """Log the wrapped strategy's summary."""
        self.strategy.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember names and shapes of what is sent; replies must have the same."""
        self._sent = {name: (tuple(array.shape), str(array.dtype)) for name, array in arrays.items()}
        return self._senders.remember(self.strategy.configure_train(server_round, arrays, config, grid))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate the sound replies, into arrays of the types that were sent.

        Raises:
            NoUsableReplies: If none is left.
        """
        outcome = RoundReplies()
        sound: list[tuple[int, str, Message]] = []
        for reply in replies:
            node = self._senders.node_of(reply)
            reason = self._refusal(reply)
            if reason is None:
                partition = _partition_id(reply)
                outcome.usable[node] = partition
                sound.append((partition, node, reply))
            else:
                outcome.left_out.append(LeftOutReply(node=node, reason=reason))
                log(WARNING, "round %d: reply of node %s is left out: %s", server_round, node, reason)
        self.rounds[server_round] = outcome
        if not sound:
            reasons = "; ".join(f"node {one.node}: {one.reason}" for one in outcome.left_out) or "no client answered"
            raise NoUsableReplies(f"round {server_round} has no usable reply. {reasons}")
        # Floating-point sums depend on their order; sorted, the same seed gives the same model.
        sound.sort(key=lambda item: item[:2])
        mean, metrics = self.strategy.aggregate_train(server_round, [reply for _, _, reply in sound])
        if mean is not None:
            mean = in_sent_types(mean, {name: dtype for name, (_, dtype) in self._sent.items()})
        return mean, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Passed on."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Passed on."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def _refusal(self, reply: Message) -> str | None:
        """Why the reply is left out, or None."""
        if reply.has_error():
            lines = (reply.error.reason or "").strip().splitlines()
            return f"the client failed: {lines[-1] if lines else f'error code {reply.error.code}'}"
        if not reply.content:
            return "the reply is empty"
        return self._foreign_code(reply) or _bad_metrics(reply) or self._bad_arrays(reply)

    def _foreign_code(self, reply: Message) -> str | None:
        if not self.fingerprint:
            return None
        told = _told(reply, FINGERPRINT_KEY)
        if told == self.fingerprint:
            return None
        return (
            f"the client ran other code than this server (fingerprint {str(told)[:12]!r}, expected "
            f"{self.fingerprint[:12]!r}); start Flower from a folder without a 'clients' package and use one version"
        )

    def _bad_arrays(self, reply: Message) -> str | None:
        records = list(reply.content.array_records.values())
        if len(records) != 1:
            return f"expected one ArrayRecord, got {len(records)}"
        arrays = records[0]
        if arrays.keys() != self._sent.keys():
            odd = sorted(arrays.keys() ^ self._sent.keys())
            return f"expected the array names that were sent; these are on one side only: {odd[:4]}"
        for name, array in arrays.items():
            form = (tuple(array.shape), str(array.dtype))
            if form != self._sent[name]:
                return f"{name}: expected shape and type {self._sent[name]}, got {form}"
            value = array.numpy()
            if not bool(np.isfinite(value).all()):
                return f"{name}: values are not finite"
            if value.size and float(np.abs(value).max()) > LARGEST:
                return f"{name}: a value beyond {LARGEST:g}, which no sound training reaches"
        return None


def _bad_metrics(reply: Message) -> str | None:
    records = list(reply.content.metric_records.values())
    if len(records) != 1:
        return f"expected one MetricRecord, got {len(records)}"
    examples = records[0].get("num-examples")
    if not isinstance(examples, int | float) or not math.isfinite(examples) or examples <= 0:
        return f"expected a positive number in the metric 'num-examples', got {examples!r}"
    return None


def _partition_id(reply: Message) -> int:
    value = _told(reply, PARTITION_KEY)
    return value if isinstance(value, int) else -1


def _told(reply: Message, key: str) -> object:
    """A value of our own record in the reply, None when the client sent none."""
    record = reply.content.config_records.get(REPLY_RECORD)
    return None if record is None else record.get(key)
