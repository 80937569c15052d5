"""The view from the wire: a Grid wrapper for server apps that send and collect messages themselves.

`Interceptor` sees what a strategy gets. This sees what reaches the server, whatever handles it there: server apps
without a strategy, legacy workflows, and secure aggregation, of which nothing is left to attack in a client's reply.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from fl_precode.flower.recorder import Recorder
from fl_precode.models.input_spec import InputSpec
from fl_precode.tape import TapeWriter


class ListeningGrid(Grid):
    """Wraps a Grid and records what goes to clients to be trained and what comes back; changes nothing.

    Messages count as training when they are of the type ``train`` and carry arrays. A tape's round has one set of
    weights: the number is the message's ``server-round`` (or its group, in legacy workflows), and the next free number
    where there is none or where clients get weights of their own.

    Args:
        grid: The grid that really sends.
        tape: As for `fl_precode.flower.interceptor.Interceptor`, and so are the others.
        batch_size: Distinct images behind one update.
        buffers: Names of arrays that are no parameters.
        model: For a new tape: where an audit finds the model.
        inputs: For a new tape: the images' domain.
        classes: Number of classes.
        run_config: For a new tape: Flower's run configuration.

    Raises:
        ValueError: As `Interceptor`.
    """

    def __init__(
        self,
        grid: Grid,
        tape: TapeWriter | str | Path,
        *,
        batch_size: int | None = None,
        buffers: Collection[str] | None = None,
        model: str | None = None,
        inputs: InputSpec | str | None = None,
        classes: int | None = None,
        run_config: Mapping[str, object] | None = None,
    ) -> None:
        self._grid = grid
        self._recorder = Recorder(
            tape, batch_size=batch_size, buffers=buffers, model=model, inputs=inputs, classes=classes,
            run_config=run_config,
        )  # fmt: skip
        self._last: tuple[int, ArrayRecord] | None = None
        self._asked: dict[str, tuple[int, int]] = {}

    @property
    def tape(self) -> TapeWriter:
        """Where the updates go."""
        return self._recorder.tape

    @property
    def run(self) -> Any:
        """Passed on."""
        return self._grid.run

    def set_run(self, run: Any) -> None:
        """Passed on."""
        self._grid.set_run(run)

    def create_message(self, *arguments: Any, **named: Any) -> Message:
        """Passed on."""
        return self._grid.create_message(*arguments, **named)

    def get_node_ids(self) -> Iterable[int]:
        """Passed on."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Pass on, and record what is sent."""
        sent = list(messages)
        numbers = self._before(sent)
        identities = self._grid.push_messages(sent)
        self._after(sent, numbers)
        return identities

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pass on, and record what came."""
        return self._heard(self._grid.pull_messages(message_ids))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Pass on, and record both ways."""
        sent = list(messages)
        numbers = self._before(sent)
        # The wrapped grid's own method: it may do more than push and pull.
        replies = list(self._grid.send_and_receive(sent, timeout=timeout))
        self._after(sent, numbers)
        return self._heard(replies)

    def __getattr__(self, name: str) -> Any:
        """What a grid has beyond the interface, such as ``get_nodes`` or ``close``."""
        if name == "_grid":  # while copies are made
            raise AttributeError(name)
        return getattr(self._grid, name)

    def _before(self, messages: list[Message]) -> list[int | None]:
        numbers: list[int | None] = [None] * len(messages)

        def record() -> None:
            for place, message in enumerate(messages):
                numbers[place] = self._round_of(message)

        self._recorder.guarded(record)
        return numbers

    def _after(self, messages: list[Message], numbers: list[int | None]) -> None:
        # Ids are set when messages are pushed.
        for message, number in zip(messages, numbers, strict=True):
            if number is not None and message.metadata.message_id:
                self._asked[message.metadata.message_id] = number, message.metadata.dst_node_id

    def _heard(self, replies: Iterable[Message]) -> list[Message]:
        heard = list(replies)
        for reply in heard:
            asked = self._asked.pop(reply.metadata.reply_to_message_id, None)
            if asked is not None:
                self._recorder.guarded(self._write_reply, asked[0], str(asked[1]), reply)
        return heard

    def _write_reply(self, number: int, node: str, reply: Message) -> None:
        if not reply.has_error() and not any(reply.content.array_records.values()):
            others = sorted(key for record in reply.content.config_records.values() for key in record)
            self.tape.write_failure(
                number, node, f"no arrays in the reply; it holds {', '.join(others) or 'nothing'}, no update to attack"
            )
            return
        self._recorder.write_reply(number, node, reply)

    def _round_of(self, message: Message) -> int | None:
        """Number of the tape's round that a message belongs to, which is written when it is new; None: no training."""
        if message.metadata.message_type.partition(".")[0] != "train" or not message.has_content():
            return None
        sent = next((one for one in message.content.array_records.values() if one), None)
        if sent is None:
            return None
        last = 0 if self._last is None else self._last[0]
        announced = _announced(message)
        if self._last is not None and announced in (None, last) and _same(self._last[1], sent):
            return last
        number = announced if announced is not None and announced > last else last + 1
        self._last = number, ArrayRecord(dict(sent.items()))
        self._recorder.write_round(number, sent)
        return number


def _announced(message: Message) -> int | None:
    for record in message.content.config_records.values():
        if isinstance(number := record.get("server-round"), int):
            return number
    group = message.metadata.group_id
    return int(group) if group.isascii() and group.isdigit() else None


def _same(one: ArrayRecord, other: ArrayRecord) -> bool:
    return one.keys() == other.keys() and all(one[name].data == other[name].data for name in one)
