"""Writes what a server sends and receives onto a tape, for whoever listens: around a strategy or around the grid."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Message

from fl_precode.models.input_spec import InputSpec
from fl_precode.observation import Protocol
from fl_precode.tape import TapeHeader, TapeWriter
from fl_precode.tape_notes import input_spec, notes_path, protocol_of, write_notes

_logger = logging.getLogger(__name__)


class Recorder:
    """Copies arrays of Flower's messages at once: some strategies overwrite the contents of replies in place.

    Args:
        tape: A writer whose header says what is public, or a new folder for a tape without a header's details.
        batch_size: Distinct images behind one update when the protocol fixes it; what a reply tells goes first.
        buffers: Names of arrays that are no parameters; by default those that `looks_like_buffer`.
        model: For a new tape: where an audit finds the model, ``package.module:factory``.
        inputs: For a new tape: the images' domain, or their shape alone, which needs ``classes``.
        classes: For a new tape: number of classes.
        run_config: For a new tape: Flower's run configuration, for what it says of local training.

    Raises:
        ValueError: If the tape's folder is not empty, the inputs are no shape, or a writer is given together with what
            only a new tape takes.
    """

    def __init__(
        self,
        tape: TapeWriter | str | Path,
        *,
        batch_size: int | None,
        buffers: Collection[str] | None,
        model: str | None,
        inputs: InputSpec | str | None,
        classes: int | None,
        run_config: Mapping[str, object] | None,
    ) -> None:
        self.batch_size = batch_size
        self._buffers = buffers
        if isinstance(tape, TapeWriter):
            if (model, inputs, classes, run_config) != (None, None, None, None):
                raise ValueError("model, inputs, classes and run_config are for a new tape; a writer's header has them")
            self.tape = tape
        else:
            self.tape = _new_tape(Path(tape), model, inputs, classes, run_config)

    def guarded(self, record: Callable[..., None], *arguments: object) -> None:
        """Call; whatever goes wrong is logged and counted, because a curious listener must never be noticed."""
        try:
            record(*arguments)
        except Exception as error:  # noqa: BLE001 - foreign replies can make anything go wrong
            self.tape.lost += 1
            _logger.warning("an update could not be recorded (%s: %s); training goes on", type(error).__name__, error)

    def write_round(self, number: int, sent: ArrayRecord) -> None:
        """Record what the clients get in a round."""
        copies = {name: array.numpy() for name, array in sent.items()}
        if self._buffers is None:
            self._buffers = frozenset(name for name, value in copies.items() if looks_like_buffer(name, value))
        self.tape.write_round(number, copies)

    def write_reply(self, number: int, node: str, reply: Message) -> None:
        """Record what a client answers, or why there is nothing to record."""
        if reply.has_error():
            self.tape.write_failure(number, node, reply.error.reason or f"error code {reply.error.code}")
            return
        records = list(reply.content.array_records.values())
        if len(records) != 1:
            self.tape.write_failure(number, node, f"expected one ArrayRecord in the reply, got {len(records)}")
            return
        self.tape.write_observation(
            number,
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
