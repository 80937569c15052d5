"""The honest-but-curious server: a strategy wrapper that copies every update to a tape and changes nothing."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from logging import INFO
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fl_precode.flower.senders import Senders
from fl_precode.models.input_spec import InputSpec
from fl_precode.observation import Protocol
from fl_precode.tape import TapeHeader, TapeWriter
from fl_precode.tape_notes import input_spec, notes_path, protocol_of, write_notes

_logger = logging.getLogger(__name__)


class Interceptor(Strategy):
    """Wraps any strategy and records what the server receives.

    The wrapped strategy gets the very messages that came in, in their order; arrays are copied at once, because some
    strategies overwrite the contents of replies in place. Wrap the outermost strategy to record raw updates, an inner
    one to record what a server-side defence lets through. Trouble with the tape never reaches the federation.

    Args:
        strategy: The strategy that really runs.
        tape: A writer whose header says what is public, or a new folder for a tape without a header's details.
        batch_size: Distinct images behind one update when the protocol fixes it. What follows from a reply's
            ``num-examples`` takes precedence: for gradients that number itself, for weights what the tape's announced
            steps or epochs make of it (`Protocol.images_behind`).
        buffers: Names of arrays that are buffers, not parameters; by default those that the names of normalisation
            layers and integer types give away.
        model: For a new tape: where an audit finds the model, ``package.module:factory``.
        inputs: For a new tape: the images' domain, or their shape alone (``3x32x32``) when they are in [0, 1] and not
            normalised; a shape needs ``classes``.
        classes: Number of classes.
        run_config: For a new tape: Flower's run configuration. What it says of local training under the usual keys
            (`fl_precode.tape_notes.RUN_CONFIG_KEYS`) is announced on the tape; nothing else of it is kept.

    With a new tape a file of the same name with ``.toml`` is written beside it, for what must be added by hand; with
    model, images and run configuration given, ``fl-precode audit TAPE`` needs no further word.

    Raises:
        ValueError: If the tape's folder is not empty, the inputs are no shape, or a writer is given together with what
            only a new tape takes.
    """

    def __init__(
        self,
        strategy: Strategy,
        tape: TapeWriter | str | Path,
        *,
        batch_size: int | None = None,
        buffers: Collection[str] | None = None,
        model: str | None = None,
        inputs: InputSpec | str | None = None,
        classes: int | None = None,
        run_config: Mapping[str, object] | None = None,
    ) -> None:
        self.strategy = strategy
        self.batch_size = batch_size
        self._buffers = buffers
        self._senders = Senders()
        if isinstance(tape, TapeWriter):
            if (model, inputs, classes, run_config) != (None, None, None, None):
                raise ValueError("model, inputs, classes and run_config are for a new tape; a writer's header has them")
            self.tape = tape
        else:
            self.tape = _new_tape(Path(tape), model, inputs, classes, run_config)

    def summary(self) -> None:
        """Log what is recorded, then the wrapped strategy's summary."""
        log(INFO, "\t├──> Interceptor: every update is copied to %s", self.tape.path)
        self.strategy.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the wrapped strategy configure the round, and record what it sends."""
        messages = self._senders.remember(self.strategy.configure_train(server_round, arrays, config, grid))
        self._guarded(self._record_round, server_round, arrays, messages)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Record every reply, then let the wrapped strategy aggregate them."""
        received = list(replies)
        for reply in received:
            self._guarded(self._record_reply, server_round, reply)
        return self.strategy.aggregate_train(server_round, received)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Passed on."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Passed on."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def _guarded(self, record: object, *arguments: object) -> None:
        # A curious listener must never be noticed: whatever a foreign reply makes go wrong here is logged and counted.
        try:
            record(*arguments)  # type: ignore[operator]
        except Exception as error:  # noqa: BLE001
            self.tape.lost += 1
            _logger.warning("an update could not be recorded (%s: %s); training goes on", type(error).__name__, error)

    def _record_round(self, server_round: int, arrays: ArrayRecord, messages: list[Message]) -> None:
        sent = arrays
        if messages and messages[0].content.array_records:
            sent = next(iter(messages[0].content.array_records.values()))
        copies = {name: array.numpy() for name, array in sent.items()}
        if self._buffers is None:
            self._buffers = frozenset(name for name, value in copies.items() if looks_like_buffer(name, value))
        self.tape.write_round(server_round, copies)

    def _record_reply(self, server_round: int, reply: Message) -> None:
        node = self._senders.node_of(reply)
        if reply.has_error():
            self.tape.write_failure(server_round, node, reply.error.reason or f"error code {reply.error.code}")
            return
        records = list(reply.content.array_records.values())
        if len(records) != 1:
            self.tape.write_failure(server_round, node, f"expected one ArrayRecord in the reply, got {len(records)}")
            return
        self.tape.write_observation(
            server_round,
            node,
            {name: array.numpy() for name, array in records[0].items()},
            batch_size=self._examples(reply),
            buffers=self._buffers or (),
        )

    def _examples(self, reply: Message) -> int | None:
        header = self.tape.header
        for metrics in reply.content.metric_records.values():
            examples = metrics.get("num-examples")
            if isinstance(examples, int) and examples > 0:
                images = examples if header.kind == "gradient" else header.protocol.images_behind(examples)
                return self.batch_size if images is None else images
        return self.batch_size


def _new_tape(
    path: Path,
    model: str | None,
    inputs: InputSpec | str | None,
    classes: int | None,
    run_config: Mapping[str, object] | None,
) -> TapeWriter:
    if isinstance(inputs, str):
        if classes is None:
            raise ValueError(f"inputs={inputs!r} needs classes, the number of classes")
        inputs = input_spec(inputs, classes)
    elif classes is not None:
        raise ValueError("classes belongs to a shape, such as inputs='3x32x32'; an InputSpec has its own")
    protocol = Protocol() if run_config is None else protocol_of(run_config)
    writer = TapeWriter(path, TapeHeader(model=model or "unknown", inputs=inputs, protocol=protocol))
    try:
        if not write_notes(writer.path, writer.header):
            _logger.warning("%s is of an earlier tape and is left as it is", notes_path(writer.path))
    except OSError as error:
        _logger.warning("no notes beside the tape (%s); it is complete without them", error)
    return writer


def looks_like_buffer(name: str, value: np.ndarray) -> bool:
    """Whether an array of a state dict is a buffer; optimisers do not train whole numbers or running statistics."""
    last = name.rsplit(".", 1)[-1]
    return value.dtype.kind in "iub" or last in {"running_mean", "running_var"}
