"""The view from the wire: a Grid wrapper for server apps that send and collect messages themselves.

`Interceptor` sees what a strategy gets. This sees what reaches the server, whatever handles it there: server apps
without a strategy, legacy workflows, and secure aggregation, of which nothing is left to attack in a client's reply.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from fl_precode.flower.recorder import Answer, Asked, Recorder
from fl_precode.loss import Loss
from fl_precode.models.input_spec import InputSpec
from fl_precode.tape import TapeWriter


class ListeningGrid(Grid):
    """Wraps a Grid and records what goes to clients to be trained and what is returned; changes nothing.

    Messages count as training when they are of the type ``train`` and carry arrays. The number of a round is the
    message's ``server-round`` (or its group, in legacy workflows); without one, a round ends where a client is asked
    again. Clients may get weights of their own.

    Args:
        grid: The grid that really sends.
        tape: As for `fl_precode.flower.interceptor.Interceptor`, and so are the others.
        batch_size: Distinct images behind one update.
        buffers: Names of arrays that are no parameters.
        model: For a new tape: where an audit finds the model.
        inputs: For a new tape: the images' domain.
        classes: Number of classes.
        run_config: For a new tape: Flower's run configuration.
        loss: For a new tape: what the clients minimise.
        sampling: Which updates are kept.

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
        loss: Loss | str | None = None,
        sampling: str | None = None,
    ) -> None:
        self._grid = grid
        self._recorder = Recorder(
            tape, batch_size=batch_size, buffers=buffers, model=model, inputs=inputs, classes=classes,
            run_config=run_config, loss=loss, sampling=sampling,
        )  # fmt: skip
        self._round = 0
        self._nodes: set[int] = set()
        self._asked: dict[str, Asked] = {}

    @property
    def tape(self) -> TapeWriter:
        """Folder or URL that the updates go to."""
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
        asked = self._before(sent)
        identities = self._grid.push_messages(sent)
        self._after(sent, asked)
        return identities

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pass on, and record what came."""
        return self._heard(self._grid.pull_messages(message_ids))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Pass on, and record both ways."""
        sent = list(messages)
        asked = self._before(sent)
        # The wrapped grid's own method: it may do more than push and pull.
        replies = list(self._grid.send_and_receive(sent, timeout=timeout))
        self._after(sent, asked)
        return self._heard(replies)

    def __getattr__(self, name: str) -> Any:
        """What a grid has beyond the interface, such as ``get_nodes`` or ``close``."""
        if name == "_grid":  # while copies are made
            raise AttributeError(name)
        return getattr(self._grid, name)

    def _before(self, messages: list[Message]) -> list[Asked | None]:
        asked: list[Asked | None] = [None] * len(messages)

        def record() -> None:
            for place, message in enumerate(messages):
                if _is_training(message):
                    asked[place] = self._recorder.write_sent(self._round_of(message), message)

        self._recorder.guarded(record)
        return asked

    def _after(self, messages: list[Message], asked: list[Asked | None]) -> None:
        # Ids are set when messages are pushed.
        for message, one in zip(messages, asked, strict=True):
            if one is not None and message.metadata.message_id:
                self._asked[message.metadata.message_id] = one

    def _heard(self, replies: Iterable[Message]) -> list[Message]:
        heard = list(replies)
        answers: dict[int, list[Answer]] = {}
        for reply in heard:
            asked = self._asked.pop(reply.metadata.reply_to_message_id, None)
            if asked is not None:
                answers.setdefault(asked.round, []).append(Answer(asked=asked, node=asked.node, reply=reply))
        for number, together in answers.items():
            outstanding = [one.node for one in self._asked.values() if one.round == number]
            self._recorder.write_replies(number, together, outstanding=outstanding)
        return heard

    def _round_of(self, message: Message) -> int:
        """Number of the tape's round that a message belongs to."""
        node, announced = message.metadata.dst_node_id, _announced(message)
        if announced is not None and announced > self._round:
            self._round, self._nodes = announced, set()
        elif self._round == 0 or node in self._nodes:
            self._round, self._nodes = self._round + 1, set()
        self._nodes.add(node)
        return self._round


class ListeningServerApp(ServerApp):
    """A ServerApp that runs another one on a `ListeningGrid`; made by `listening`."""

    def __init__(self, app: ServerApp, tape: str | Path | TapeWriter, options: Mapping[str, Any]) -> None:
        super().__init__()
        self._app = app
        self._tape, self._options = tape, dict(options)

    def __call__(self, grid: Grid, context: Context) -> None:
        """Run the app; its tape is opened for every run anew."""
        listening_grid = ListeningGrid(grid, self._tape, **self._options)
        try:
            self._app(listening_grid, context)
        finally:
            listening_grid.tape.flush()


def listening(app: ServerApp, tape: str | Path | TapeWriter, **options: Any) -> ServerApp:
    """A ServerApp of which every message is recorded: the way in for apps with ``ServerAppComponents``.

    Older strategies (``flwr.server.strategy``), NumPyClient apps and workflows run unchanged::

        app = listening(ServerApp(server_fn=server_fn), "/absolute/path/of/a/new/tape", model="my_app.task:Net")

    Args:
        app: The app as it is.
        tape: As for `ListeningGrid`.
        options: The other arguments of `ListeningGrid`.

    Raises:
        TypeError: If ``app`` is no ServerApp, or there is no such option.
    """
    if not isinstance(app, ServerApp):
        raise TypeError(f"expected a flwr.serverapp.ServerApp, got {type(app).__name__}")
    inspect.signature(ListeningGrid).bind(None, tape, **options)
    return ListeningServerApp(app, tape, options)


def _is_training(message: Message) -> bool:
    if message.metadata.message_type.partition(".")[0] != "train" or not message.has_content():
        return False
    return any(message.content.array_records.values())


def _announced(message: Message) -> int | None:
    for record in message.content.config_records.values():
        for key in ("server-round", "server_round", "round"):
            if isinstance(number := record.get(key), int) and not isinstance(number, bool):
                return number
    group = message.metadata.group_id
    return int(group) if group.isascii() and group.isdigit() else None
