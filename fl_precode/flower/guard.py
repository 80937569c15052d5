"""A mod for a site that takes part: it attacks the site's own update before the server can, and may withhold it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from logging import INFO, WARNING
from pathlib import Path
from typing import Final, Literal, get_args

from flwr.app import ConfigRecord, Context, Error, Message
from flwr.clientapp.typing import ClientAppCallable, Mod
from flwr.common import log

from fl_precode.defences.registry import check_defence
from fl_precode.flower.site_evidence import Evidence
from fl_precode.flower.truth import round_of
from fl_precode.import_path import split_path
from fl_precode.judgement import Judgement, judge_update
from fl_precode.loss import Loss, importable_name
from fl_precode.models.input_spec import InputSpec
from fl_precode.spec import parse_duration

Action = Literal["warn", "withhold"]

WITHHELD: Final = 1_001
"""Code of the error that stands in for a withheld update; Flower's own end far below."""

_REASON: Final = "This site withheld its update of this round. Its own log says why."
"""The same whatever was found: telling a leak from a failed audit would tell something of the data."""

_STATE: Final = "fl-precode.leakage-guard"


def leakage_guard_mod(
    folder: str | Path,
    *,
    model: str,
    inputs: InputSpec | str,
    classes: int | None = None,
    every: int = 1,
    budget: str = "20s",
    action: Action = "withhold",
    max_asr: float = 0.0,
    loss: Loss | str | None = None,
    defence: str | None = None,
) -> Mod:
    """A mod that audits what a client is about to send, and withholds an update from which images are reconstructed.

    Put it first in the list, so that it sees the reply as the server would, behind the site's own defences; mods of a
    list run from the outside in::

        guard = leakage_guard_mod("/private/guard", model="my_app.task:Net", inputs="3x32x32", classes=10)

        @app.train(mods=[guard, gradient_defence_mod("clip:max_norm=1+noise:std=0.001")])

    The client calls `record_truth` where it trains. On judged rounds the guard finds the true images by itself, attacks
    the update and decides by the audit's verdict. Each judged round leaves ``folder/round-0001`` with ``audit.json``
    and ``report/index.html``, which show the site's images and are readable by their owner only; the copies of the
    update and of the images are removed. Evaluation, errors and rounds that are not judged pass as they are.

    A round that was to be judged and could not be (no true images were recorded, nothing could be attacked, the audit
    failed) counts as one that leaks; the log says why.

    Args:
        folder: The guard's own folder, on the site's side; made, 0700, when it is needed.
        model: Where the audit finds the model, ``package.module:factory``.
        inputs: The images' domain, or their shape alone, ``3x32x32``, which needs ``classes``.
        classes: Number of classes.
        every: A message of training is judged if none was before, or if the client has answered this number of them, or
            the server has counted this number of rounds, since the last one that was.
        budget: Time of one audit, such as ``20s`` or ``2m``; the reply waits for it.
        action: ``withhold`` sends an error in place of the update, which strategies count as a failed client; ``warn``
            sends the update and writes a warning into the log.
        max_asr: Share of the judged images that may be reconstructed, as ``fl-precode check --max-asr`` takes it.
        loss: What the client minimises, as `Interceptor` takes it; None for what the run configuration says.
        defence: The defence that the attacker is taken to know of, ``clip:max_norm=1+noise:std=0.001``, or ``none``;
            attacks that answer it are run as well. None for one that nobody announced.

    Raises:
        ValueError: If a setting is none that exists, or out of its range.
    """
    if action not in get_args(Action):
        raise ValueError(f"expected action to be 'warn' or 'withhold', got {action!r}")
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"expected every to be a whole number of rounds, 1 or more, got {every!r}")
    if not 0 <= max_asr <= 1:
        raise ValueError(f"expected max_asr to be a share from 0 to 1, got {max_asr!r}")
    if not str(folder):
        raise ValueError("expected a folder of the guard's own, such as '/private/guard', got an empty name")
    split_path(model, "model")
    if defence is not None:
        check_defence(defence)
    return _Guard(
        folder=Path(folder).expanduser().absolute(),
        model=model,
        inputs=_input_spec(inputs, classes),
        every=every,
        seconds=parse_duration(budget),
        withholds=action == "withhold",
        max_asr=max_asr,
        loss=None if loss is None else importable_name(loss),
        defence=defence,
    )


def _input_spec(inputs: InputSpec | str, classes: int | None) -> InputSpec:
    if isinstance(inputs, InputSpec):
        if classes is not None:
            raise ValueError("classes belongs to a shape, such as inputs='3x32x32'; an InputSpec has its own")
        return inputs
    if classes is None:
        raise ValueError(f"inputs={inputs!r} needs classes, the number of classes")
    return InputSpec.parse(inputs, classes)


@dataclass(frozen=True, kw_only=True)
class _Guard:
    """The mod."""

    folder: Path
    model: str
    inputs: InputSpec
    every: int
    seconds: float
    withholds: bool
    max_asr: float
    loss: str | None
    defence: str | None

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if message.metadata.message_type.partition(".")[0] != "train":
            return call_next(message, context)
        counted = _Counted.of(message, context)
        if not counted.is_due(self.every):
            reply = call_next(message, context)
        else:
            reply, judged = self._judged(message, context, call_next, counted.number)
            counted = counted.judged() if judged else counted
        if not reply.has_error() or reply.error.code == WITHHELD:
            # Behind the client, which may have put a state of its own in place of the one that came.
            context.state[_STATE] = counted.record()
        return reply

    def _judged(
        self, message: Message, context: Context, call_next: ClientAppCallable, number: int
    ) -> tuple[Message, bool]:
        """The reply or what stands in for it, and whether there was something to judge."""
        with ExitStack() as stack:
            kept = Evidence.of(
                message, context, number, folder=self.folder, model=self.model, inputs=self.inputs, loss=self.loss
            )
            evidence: Evidence | str
            try:
                evidence = stack.enter_context(kept)
            except Exception as error:  # noqa: BLE001 - foreign messages can make anything go wrong
                evidence = f"its evidence cannot be kept ({type(error).__name__}: {error})"
            reply = call_next(message, context)
            if reply.has_error():
                return reply, False
            judgement = self._judge(evidence, reply)
        return self._answer(message, reply, judgement, number), True

    def _judge(self, evidence: Evidence | str, reply: Message) -> Judgement:
        if isinstance(evidence, str):
            return Judgement(passes=None, finding=evidence)
        if missing := evidence.complete(reply):
            return Judgement(passes=None, finding=missing)
        return judge_update(
            evidence.tape,
            truth=evidence.truth,
            out=evidence.folder,
            seconds=self.seconds,
            max_asr=self.max_asr,
            defence=self.defence,
        )

    def _answer(self, message: Message, reply: Message, judgement: Judgement, number: int) -> Message:
        withheld = self.withholds and not judgement.passes
        does = "withheld" if withheld else "sent" if judgement.passes else "sent all the same (action='warn')"
        unknown = "it could not be judged: " if judgement.passes is None else ""
        page = "" if judgement.page is None else f" Page: {judgement.page}"
        log(
            INFO if judgement.passes else WARNING,
            "Leakage guard, round %d: the update is %s; %s%s.%s",
            number, does, unknown, judgement.finding, page,
        )  # fmt: skip
        return Message(Error(code=WITHHELD, reason=_REASON), reply_to=message) if withheld else reply


@dataclass(frozen=True, kw_only=True)
class _Counted:
    """The place of a message among those that a client answers; kept in the context, because processes change.

    Attributes:
        answered: Messages of training, this one included.
        round: By the server; None where it names none.
        judged_at: ``answered`` at the last judged one, 0 before the first.
        judged_round: Its round by the server, -1 where that is not known.
    """

    answered: int
    round: int | None
    judged_at: int
    judged_round: int

    @classmethod
    def of(cls, message: Message, context: Context) -> _Counted:
        """Read where the last one ended."""
        kept: Mapping[str, object] = context.state.config_records.get(_STATE) or {}
        last = {key: value for key, value in kept.items() if isinstance(value, int)}
        named = round_of(message)
        return cls(
            answered=last.get("answered", 0) + 1,
            round=int(named) if named else None,
            judged_at=last.get("judged-at", 0),
            judged_round=last.get("judged-round", -1),
        )

    @property
    def number(self) -> int:
        """Number of the round for people."""
        return self.answered if self.round is None else self.round

    def is_due(self, every: int) -> bool:
        """Whether this message is judged: by the client's own count even if the server's never moves."""
        if not self.judged_at or self.answered - self.judged_at >= every:
            return True
        return self.round is not None and 0 <= self.judged_round <= self.round - every

    def judged(self) -> _Counted:
        """After this message was judged."""
        judged_round = -1 if self.round is None else self.round
        return _Counted(answered=self.answered, round=self.round, judged_at=self.answered, judged_round=judged_round)

    def record(self) -> ConfigRecord:
        """For the context."""
        return ConfigRecord({"answered": self.answered, "judged-at": self.judged_at, "judged-round": self.judged_round})
