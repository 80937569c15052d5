"""The honest-but-curious server: a strategy wrapper that copies every update to a tape and changes nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from logging import INFO
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fl_precode.flower.recorder import Recorder
from fl_precode.flower.senders import Senders
from fl_precode.models.input_spec import InputSpec
from fl_precode.tape import TapeWriter


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
        self._recorder = Recorder(
            tape, batch_size=batch_size, buffers=buffers, model=model, inputs=inputs, classes=classes,
            run_config=run_config,
        )  # fmt: skip
        self._senders = Senders()

    @property
    def tape(self) -> TapeWriter:
        """Where the updates go."""
        return self._recorder.tape

    def summary(self) -> None:
        """Log what is recorded, then the wrapped strategy's summary."""
        log(INFO, "\t├──> Interceptor: every update is copied to %s", self.tape.path)
        self.strategy.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the wrapped strategy configure the round, and record what it sends."""
        messages = self._senders.remember(self.strategy.configure_train(server_round, arrays, config, grid))
        self._recorder.guarded(self._record_round, server_round, arrays, messages)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Record every reply, then let the wrapped strategy aggregate them."""
        received = list(replies)
        for reply in received:
            self._recorder.guarded(self._record_reply, server_round, reply)
        return self.strategy.aggregate_train(server_round, received)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Passed on."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Passed on."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def _record_round(self, server_round: int, arrays: ArrayRecord, messages: list[Message]) -> None:
        sent = arrays
        if messages and messages[0].content.array_records:
            sent = next(iter(messages[0].content.array_records.values()))
        self._recorder.write_round(server_round, sent)

    def _record_reply(self, server_round: int, reply: Message) -> None:
        self._recorder.write_reply(server_round, self._senders.node_of(reply), reply)
