"""FedSGD: clients send gradients, the server takes the step (McMahan et al. 2017, section 2)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from logging import INFO

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fl_precode.flower.aggregate import in_sent_types


class FedSgd(FedAvg):
    """FedAvg's sampling and weighted mean, applied to gradients.

    Clients reply with one ArrayRecord of the names and shapes that were sent: the gradient for each parameter, the
    current value for each buffer. The new parameters are ``sent - learning_rate * mean gradient``, weighted by
    ``num-examples``; buffers are averaged, whole numbers rounded.

    Args:
        learning_rate: Learning rate of the server's step, positive.
        buffers: Names of the arrays that are buffers.
        min_nodes: Nodes to wait for before a round starts.
    """

    def __init__(self, *, learning_rate: float, buffers: Collection[str] = (), min_nodes: int = 1) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=min_nodes, min_available_nodes=min_nodes)
        if learning_rate <= 0:
            raise ValueError(f"expected a positive learning rate, got {learning_rate}")
        self.learning_rate = learning_rate
        self.buffers = frozenset(buffers)
        self._sent = ArrayRecord()

    def summary(self) -> None:
        """Log the step size and FedAvg's summary."""
        log(INFO, "\t├──> FedSGD: learning rate %g", self.learning_rate)
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample nodes as FedAvg does, and remember what the step starts from."""
        self._sent = arrays
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the gradients and take one step."""
        mean, metrics = super().aggregate_train(server_round, list(replies))
        if mean is None:
            return None, metrics
        stepped = {}
        for name, array in self._sent.items():
            before, change = array.numpy(), mean[name].numpy()
            after = change if name in self.buffers else before - self.learning_rate * change
            stepped[name] = Array(np.asarray(after))
        return in_sent_types(ArrayRecord(stepped), {name: array.dtype for name, array in self._sent.items()}), metrics
