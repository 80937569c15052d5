"""The honest-but-curious server: a strategy wrapper that copies every update to a tape and changes nothing."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from logging import INFO
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fl_precode.flower.recorder import Answer, Asked, Recorder
from fl_precode.flower.senders import Senders
from fl_precode.loss import Loss
from fl_precode.models.input_spec import InputSpec
from fl_precode.tape import TapeWriter

_OWN = frozenset({"strategy", "_recorder", "_watcher"})


class Interceptor(Strategy):
    """Wraps any strategy and records what the server receives.

    The wrapped strategy gets the very messages that came in, in their order; arrays are copied at once, because some
    strategies overwrite the contents of replies in place. Wrap the outermost strategy to record raw updates, an inner
    one to record what a server-side defence lets through. Trouble with the tape never reaches the federation.

    Everything else is the wrapped strategy's own: its ``start``, methods and attributes are reached through the
    wrapper, and what they do in rounds of training is recorded.

    Args:
        strategy: The strategy that really runs. Its ``configure_train``, ``aggregate_train`` and ``aggregate_evaluate``
            are listened to.
        tape: A writer whose header says what is public, or a new folder for a tape without a header's details; or the
            URL of an object store, ``s3://bucket/tape``, without credentials in it. Where the folder holds the tape of
            an earlier run, a numbered one beside it is taken.
        batch_size: Distinct images behind one update when the protocol fixes it. What follows from the number of
            examples that a reply names takes precedence: for gradients that number itself, for weights what the tape's
            announced steps or epochs make of it (`Protocol.images_behind`).
        buffers: Names of arrays that are buffers, not parameters; by default the model decides when the tape is read.
        model: For a new tape: where an audit finds the model, ``package.module:factory``.
        inputs: For a new tape: the images' domain, or their shape alone (``3x32x32``), which needs ``classes`` and
            leaves open how the images are normalised.
        classes: Number of classes.
        run_config: For a new tape: Flower's run configuration. What it says of local training, in whatever spelling
            (`fl_precode.tape.announced_settings`), is announced on the tape; nothing else of it is kept.
        loss: For a new tape: what the clients minimise, a function of (scores, labels) at the top of a module or its
            name, ``my_app.task:loss``; goes before what the run configuration says. Audits import it by its name.
        canaries: For a new tape: the canaries that the clients' `fl_precode.flower.canary_mod` puts in, by the same
            text, ``count=1000,norm=1``, so that an audit knows what to look for. Which are in stands on no tape.
        sampling: Which updates are kept: ``every:k=10`` (the first of the run and each tenth after it),
            ``reservoir:n=120,seed=3`` (of each round so many, each as likely as any other), ``size:megabytes=500``
            (until the tape has reached it), or a size joined with one of the others by a ``+``. None keeps all. The
            tape says how many updates came in and how many were kept.

    With a new tape a file of the same name with ``.toml`` is written beside it, for what must be added by hand; with
    model, images and run configuration given, ``fl-precode audit TAPE`` needs no further word.

    Raises:
        TypeError: If the strategy is none of Flower's message API, or cannot be listened to; the text says what can.
        ValueError: If the tape's folder holds something else, the inputs are no shape, the loss cannot be imported by
            its name, the canaries or the sampling are none that exist, or a writer is given together with what only a
            new tape takes.
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
        loss: Loss | str | None = None,
        canaries: str | None = None,
        sampling: str | None = None,
    ) -> None:
        problem = why_not_watched(strategy)
        if problem is not None:
            raise TypeError(problem)
        recorder = Recorder(
            tape, batch_size=batch_size, buffers=buffers, model=model, inputs=inputs, classes=classes,
            run_config=run_config, loss=loss, canaries=canaries, sampling=sampling,
        )  # fmt: skip
        self.strategy = strategy
        self._recorder = recorder
        # A strategy that is wrapped already starts itself, past its first wrapper.
        watched = strategy
        while isinstance(watched, Interceptor):
            watched = watched.strategy
        self._watcher = _Watcher(watched, recorder)

    @property
    def tape(self) -> TapeWriter:
        """Folder or URL that the updates go to."""
        return self._recorder.tape

    def __getattr__(self, name: str) -> Any:
        """What the wrapped strategy has beyond the interface."""
        if name in _OWN:  # while copies are made
            raise AttributeError(name)
        return getattr(self.strategy, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Settings are those of the wrapped strategy."""
        if name in _OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self.strategy, name, value)

    def start(self, *arguments: Any, **named: Any) -> Any:
        """The wrapped strategy's own start, after a line about what is recorded."""
        log(INFO, "Interceptor: %s", self._recorder.words)
        try:
            return self.strategy.start(*arguments, **named)
        finally:
            self.tape.flush()

    def summary(self) -> None:
        """Log what is recorded, then the wrapped strategy's summary."""
        log(INFO, "\t├──> Interceptor: %s", self._recorder.words)
        self.strategy.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the wrapped strategy configure the round; what it sends is recorded."""
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the wrapped strategy aggregate the replies; each is recorded before."""
        return self.strategy.aggregate_train(server_round, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Passed on."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Passed on; the number of replies is recorded."""
        return self.strategy.aggregate_evaluate(server_round, replies)


class _Watcher:
    """Listens to one strategy object, whoever calls its methods: its own ``start``, a wrapper, or the app."""

    def __init__(self, strategy: Strategy, recorder: Recorder) -> None:
        self._recorder = recorder
        self._senders = Senders()
        self._asked: dict[int, Asked] = {}
        self._weights = _setting(strategy, "arrayrecord_key")
        self._weighted_by = _setting(strategy, "weighted_by_key")
        for name, watched in (
            ("configure_train", self._configuring),
            ("aggregate_train", self._aggregating),
            ("aggregate_evaluate", self._evaluating),
        ):
            setattr(strategy, name, watched(getattr(strategy, name)))

    def _configuring(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def configure_train(server_round: int, arrays: ArrayRecord, *rest: Any, **named: Any) -> Any:
            sent = original(server_round, arrays, *rest, **named)
            if sent is None:
                return None
            messages = self._senders.remember(sent)
            self._recorder.guarded(self._record_sent, server_round, arrays, messages)
            return messages

        return configure_train

    def _aggregating(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def aggregate_train(server_round: int, replies: Iterable[Message], *rest: Any, **named: Any) -> Any:
            received = list(replies)
            answers: list[Answer] = []
            for reply in received:
                self._recorder.guarded(self._add_answer, answers, reply)
            self._recorder.write_replies(server_round, answers)
            return original(server_round, received, *rest, **named)

        return aggregate_train

    def _evaluating(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def aggregate_evaluate(server_round: int, replies: Iterable[Message], *rest: Any, **named: Any) -> Any:
            received = list(replies)
            self._recorder.guarded(self._record_evaluation, server_round, received)
            return original(server_round, received, *rest, **named)

        return aggregate_evaluate

    def _record_sent(self, server_round: int, arrays: ArrayRecord, messages: list[Message]) -> None:
        self._asked = {}
        for message in messages:
            if message.has_content() and any(message.content.array_records.values()):
                self._asked[id(message)] = self._recorder.write_sent(
                    server_round, message, weights=self._weights, like=arrays
                )

    def _add_answer(self, answers: list[Answer], reply: Message) -> None:
        message = self._senders.answered_by(reply)
        asked = None if message is None else self._asked.get(id(message))
        node = self._senders.node_of(reply)
        answers.append(Answer(asked=asked, node=node, reply=reply, weighted_by=self._weighted_by))

    def _record_evaluation(self, server_round: int, replies: list[Message]) -> None:
        if replies:
            failed = sum(reply.has_error() for reply in replies)
            self._recorder.tape.write_evaluation(server_round, replies=len(replies), failed=failed)


def why_not_watched(strategy: object) -> str | None:
    """Why the Interceptor cannot listen to a strategy, in one sentence that says what can; None when it can."""
    kind = type(strategy).__name__
    if not isinstance(strategy, Strategy):
        if hasattr(strategy, "configure_fit") and hasattr(strategy, "aggregate_fit"):
            return (
                f"{kind} is a strategy of Flower's older API (flwr.server.strategy), which the Interceptor cannot "
                "hear; leave the strategy as it is and wrap the ServerApp instead: "
                "app = fl_precode.flower.listening(ServerApp(server_fn=server_fn), TAPE)"
            )
        return (
            f"expected a strategy of flwr.serverapp.strategy, got {kind}; for a server that sends messages itself, "
            "wrap its grid: grid = fl_precode.flower.ListeningGrid(grid, TAPE)"
        )
    if not hasattr(strategy, "__dict__"):
        return f"{kind} has __slots__ and cannot be listened to; wrap the grid: ListeningGrid(grid, TAPE)"
    if type(strategy).start is not Strategy.start and not _calls_configure_train(type(strategy)):
        return (
            f"the start of {kind} sends its messages itself, past configure_train, so that the Interceptor would hear "
            "nothing; wrap the grid that it gets: strategy.start(ListeningGrid(grid, TAPE), ...)"
        )
    return None


def _calls_configure_train(kind: type) -> bool:
    """Whether a strategy with a start of its own sends rounds through ``configure_train``, itself or by its parent."""
    own = [base for base in kind.__mro__ if not base.__module__.startswith("flwr.") and base is not object]
    if issubclass(kind, Interceptor):
        return True
    for base in own:
        for _, function in inspect.getmembers(base, inspect.isfunction):
            names = set(function.__code__.co_names)
            if "configure_train" in names or (function.__name__ == "start" and "super" in names):
                return True
    return False


def _setting(strategy: object, name: str) -> str:
    """A strategy's own word for something; wrappers of strategies ask the one that they wrap."""
    seen: set[int] = set()
    while strategy is not None and id(strategy) not in seen:
        seen.add(id(strategy))
        if isinstance(found := getattr(strategy, name, None), str):
            return found
        strategy = getattr(strategy, "strategy", None)
    return ""
