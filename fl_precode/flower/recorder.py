"""Writes what a server sends and receives onto a tape, for whoever listens: around a strategy or around the grid."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict

from fl_precode.flower.fingerprint import REPLY_RECORD
from fl_precode.loss import Loss, importable_name
from fl_precode.models.input_spec import InputSpec
from fl_precode.observation import Protocol
from fl_precode.places.object_store import path_of, url_of
from fl_precode.privacy.canaries import KEY, Canaries
from fl_precode.tape import TapeHeader, TapeWriter
from fl_precode.tape.announced_settings import announced_settings
from fl_precode.tape.format import HEADER, Scalar
from fl_precode.tape.notes import input_spec, notes_path, write_notes
from fl_precode.tape.sampling import Candidate, Sampler, Sampling
from fl_precode.tape.spool import tape_writer

_logger = logging.getLogger(__name__)

_LONGEST_TEXT = 200  # characters of a setting that are kept
_LONGEST_LIST = 4_096
_LINE_BYTES, _NAME_BYTES = 800, 100
_USUAL_NAMES = ("arrays", "fitins.parameters", "fitres.parameters", "parameters", "weights", "model")
"""What Flower and its apps call the ArrayRecord with the weights."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A message to a client, as far as its reply needs it.

    Attributes:
        round: On the tape.
        node: Who was asked.
        file: What was sent, on the tape; None when it could not be written.
        weights: Name of the ArrayRecord that counts as the weights.
        message_type: Flower's type.
        configs: Single values of the message's ConfigRecords.
    """

    round: int
    node: str
    file: str | None
    weights: str
    message_type: str
    configs: Mapping[str, Mapping[str, Scalar]]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A reply that came in.

    Attributes:
        asked: What it answers, where that is known.
        node: Who answers.
        reply: As it came.
        weighted_by: Key of the number by which the strategy weights replies; "" for Flower's usual one.
    """

    asked: Asked | None
    node: str
    reply: Message
    weighted_by: str = ""


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
        loss: For a new tape: what the clients minimise, or its name.
        canaries: For a new tape: what clients put into their updates, as `Canaries.parse` takes it.
        sampling: Which updates are kept, as `Sampling.parse` takes it; None or "" for all.

    Raises:
        ValueError: If the tape's folder holds something else than a tape, the inputs are no shape, the loss has no name
            by which it is imported, there is no such sampling, or a writer is given together with what only a new tape
            takes.
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
        loss: Loss | str | None,
        canaries: str | None = None,
        sampling: str | None = None,
    ) -> None:
        self.sampler = Sampler(Sampling.parse(sampling)) if sampling else None
        self.batch_size = batch_size
        self._buffers = buffers
        self._round = -1
        self._sent: dict[str, str | None] = {}
        self._same: dict[tuple[int, ...], tuple[str, RecordDict]] = {}
        if isinstance(tape, TapeWriter):
            if any(one is not None for one in (model, inputs, classes, run_config, loss, canaries)):
                raise ValueError(
                    "model, inputs, classes, run_config, loss and canaries are for a new tape; a writer's header has "
                    "them"
                )
            self.tape = tape
        else:
            settings: dict[str, Scalar] = {}
            if canaries is not None:
                Canaries.parse(canaries)
                settings[KEY] = canaries
            self.tape = _new_tape(tape, model, inputs, classes, _protocol(run_config, loss), settings)

    def guarded(self, record: Callable[..., None], *arguments: object) -> None:
        """Call; whatever goes wrong is logged and counted, because a curious listener must never be noticed."""
        try:
            record(*arguments)
        except Exception as error:  # noqa: BLE001 - foreign replies can make anything go wrong
            self.tape.lost += 1
            _logger.warning("an update could not be recorded (%s: %s); training goes on", type(error).__name__, error)

    def write_sent(self, number: int, message: Message, *, weights: str = "", like: ArrayRecord | None = None) -> Asked:
        """Record what one client gets in a round; what several get is written once.

        Args:
            number: Number of the round.
            message: What is sent.
            weights: What the strategy calls the ArrayRecord with the weights; "" when it has no word for it.
            like: The global weights, where they are known.
        """
        if number != self._round:
            self._round, self._sent, self._same = number, {}, {}
        chosen = _weights_of(message.content, weights, like)
        digest = self._digest(message.content)
        if digest not in self._sent:
            self._sent[digest] = self._write_sent(number, message.content, chosen)
        return Asked(
            round=number,
            node=str(message.metadata.dst_node_id),
            file=self._sent[digest],
            weights=chosen,
            message_type=message.metadata.message_type,
            configs=_values(message.content.config_records),
        )

    @property
    def words(self) -> str:
        """What happens to updates, for logs."""
        kept = "every update is" if self.sampler is None else f"updates are sampled ({self.sampler.sampling.spec}) and"
        return f"{kept} copied to {self.tape.place}"

    def write_replies(self, number: int, answers: Sequence[Answer], *, outstanding: Collection[str] = ()) -> None:
        """Record the replies that came in together, as far as they are kept; never raises.

        Args:
            number: Number of the round.
            answers: The replies.
            outstanding: Nodes that were asked in this round and have not answered yet, where that is known.
        """
        kept: list[Answer] = list(answers)
        if self.sampler is not None:
            kept = []
            self.guarded(self._choose, self.sampler, kept, number, answers, outstanding)
        for answer in kept:
            self.guarded(self._write_reply, number, answer)

    def _choose(
        self,
        sampler: Sampler,
        kept: list[Answer],
        number: int,
        answers: Sequence[Answer],
        outstanding: Collection[str],
    ) -> None:
        """Add to ``kept`` what is to be written, and note how many updates there were; failures are always written."""
        try:
            updates = [answer for answer in answers if _is_update(answer.reply)]
            candidates = [Candidate(node=one.node, bytes=_bytes_of(one.reply.content)) for one in updates]
            chosen = sampler.choose(number, candidates, written=self.tape.bytes, outstanding=outstanding)
        except Exception:
            self.tape.lost += len(answers) - 1  # and one for the error
            raise
        kept.extend(answer for answer in answers if not _is_update(answer.reply))
        if not updates:
            return
        # Before they are written, so that whoever stops this process leaves no update that nobody counted.
        self.tape.write_sampling(number, seen=len(updates), kept=sum(chosen), by=sampler.sampling.spec)
        kept.extend(answer for answer, wanted in zip(updates, chosen, strict=True) if wanted)

    def _write_sent(self, number: int, content: RecordDict, chosen: str) -> str | None:
        if self.sampler is not None and not self.sampler.has_room(self.tape.bytes + _bytes_of(content)):
            return None
        return self.tape.write_sent(number, _arrays(content, chosen))

    def _write_reply(self, number: int, answer: Answer) -> None:
        """Record what a client answers, or why there is nothing to record."""
        asked, node, reply = answer.asked, answer.node, answer.reply
        if reply.has_error():
            self.tape.write_failure(number, node, reply.error.reason or f"error code {reply.error.code}")
            return
        content = reply.content
        if not any(content.array_records.values()):
            self.tape.write_failure(number, node, _why_no_arrays(content))
            return
        records = _arrays(content, _weights_of(content, "" if asked is None else asked.weights, None))
        about: dict[str, object] = {
            "batch_size": self.batch_size,
            "buffers": sorted(self._buffers if self._buffers is not None else _buffers_in(records)),
            "buffers_given": self._buffers is not None,
            "message": reply.metadata.reply_to_message_id,
            "metrics": _values(content.metric_records),
            "configs": _values(content.config_records),
            "weighted_by": answer.weighted_by or "num-examples",
        }
        if lists := _lists(content.metric_records):
            about["lists"] = lists
        if asked is not None:
            about |= {"message_type": asked.message_type, "asked": asked.configs}
            about |= {} if asked.file is None else {"sent": asked.file}
        self.tape.write_reply(number, node, records, **about)

    def _digest(self, content: RecordDict) -> str:
        """What tells this content's arrays from any others; objects that several messages share are hashed once."""
        key = tuple(id(record) for record in content.array_records.values())
        if key not in self._same:
            digest = hashlib.sha256()
            for name, record in content.array_records.items():
                for array_name, array in record.items():
                    digest.update(f"{name}\0{array_name}\0{array.dtype}{array.shape}\0".encode() + array.data)
            self._same[key] = digest.hexdigest(), content  # kept, so that no other object gets its address
        return self._same[key][0]


def _is_update(reply: Message) -> bool:
    return not reply.has_error() and any(map(bool, reply.content.array_records.values()))


def _bytes_of(content: RecordDict) -> int:
    """About what a message takes on the tape: its arrays, their names, and a line of the manifest."""
    arrays = [array for record in content.array_records.values() for array in record.values()]
    return _LINE_BYTES + sum(_NAME_BYTES + len(array.data) for array in arrays)


def _weights_of(content: RecordDict, wanted: str, like: ArrayRecord | None) -> str:
    """Name of the ArrayRecord that counts as the weights."""
    records = content.array_records
    if wanted in records:
        return wanted
    if like is not None:
        alike = [name for name, record in records.items() if _form(record) == _form(like)]
        equal = [name for name in alike if all(records[name][one].data == like[one].data for one in like)]
        if equal or alike:
            return (equal or alike)[0]
    return next((name for name in (*_USUAL_NAMES, *records) if records.get(name)), "")


def _form(record: ArrayRecord) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(array.shape)) for name, array in record.items()]


def _arrays(content: RecordDict, weights: str) -> dict[str, dict[str, np.ndarray]]:
    """Arrays of a message by record, the weights first."""
    records = content.array_records
    names = [weights, *(name for name in records if name != weights and records[name])]
    return {name: {key: array.numpy() for key, array in records[name].items()} for name in names}


def _values(records: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, Scalar]]:
    """Single values of records; ours, which is for the evaluation only, is left out."""
    found: dict[str, dict[str, Scalar]] = {}
    for name, record in records.items():
        if name == REPLY_RECORD:
            continue
        kept = {key: _value(value) for key, value in record.items()}
        found[name] = {key: value for key, value in kept.items() if value is not None}
    return {name: kept for name, kept in found.items() if kept}


def _value(value: object) -> Scalar | None:
    if isinstance(value, str):
        return value[:_LONGEST_TEXT]
    if isinstance(value, bool | int):
        return value
    # JSON has no infinity.
    return value if isinstance(value, float) and math.isfinite(value) else None


def _lists(records: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, list[float]]]:
    """Lists of finite numbers in records, such as counts by class; long ones are left out."""
    found: dict[str, dict[str, list[float]]] = {}
    for name, record in records.items():
        for key, value in record.items():
            if isinstance(value, list) and 0 < len(value) <= _LONGEST_LIST and all(map(math.isfinite, value)):
                found.setdefault(name, {})[key] = value
    return found


def _why_no_arrays(content: RecordDict) -> str:
    keys = sorted(key for record in content.config_records.values() for key in record)
    held = ", ".join(keys) or "nothing"
    if any("masked" in key for key in keys):
        return f"masked by secure aggregation: the reply holds {held}, no arrays in the clear and no update to attack"
    return f"no arrays in the reply; it holds {held}, no update to attack"


def _buffers_in(records: Mapping[str, Mapping[str, np.ndarray]]) -> set[str]:
    first = next(iter(records.values()))
    return {name for name, value in first.items() if looks_like_buffer(name, value)}


def _new_tape(
    place: str | Path,
    model: str | None,
    inputs: InputSpec | str | None,
    classes: int | None,
    protocol: Protocol,
    settings: Mapping[str, Scalar],
) -> TapeWriter:
    if isinstance(inputs, str):
        if classes is None:
            raise ValueError(f"inputs={inputs!r} needs classes, the number of classes")
        inputs = input_spec(inputs, classes)
    elif classes is not None:
        raise ValueError("classes belongs to a shape, such as inputs='3x32x32'; an InputSpec has its own")
    header = TapeHeader(model=model or "unknown", inputs=inputs, protocol=protocol, settings=settings)
    writer = tape_writer(place, header) if url_of(place) else _first_free(path_of(place), header)
    try:
        if not write_notes(writer.path, writer.header):
            _logger.warning("%s is of an earlier tape and is left as it is", notes_path(writer.path))
    except OSError as error:
        _logger.warning("no notes beside the tape (%s); it is complete without them", error)
    return writer


def _first_free(path: Path, header: TapeHeader) -> TapeWriter:
    """A tape in the folder, or in a numbered one beside it when that holds the tape of an earlier run."""
    asked = path.expanduser()
    if not asked.is_absolute():
        _logger.warning(
            "the tape's path %s is relative; Flower runs the server in a folder of its own, so the tape is at %s",
            path,
            asked.absolute(),
        )
    number, folder = 1, asked
    while True:
        try:
            writer = TapeWriter(folder, header)
        except ValueError:
            if not (folder / HEADER).exists():
                raise
            number += 1
            folder = asked.with_name(f"{asked.name}-{number}")
            continue
        if number > 1:
            _logger.warning("%s holds the tape of an earlier run; this run's tape is %s", asked, writer.path)
        return writer


def _protocol(run_config: Mapping[str, object] | None, loss: Loss | str | None) -> Protocol:
    """What is known of local training, with a loss that was named."""
    protocol = _configured(run_config)
    return protocol if loss is None else replace(protocol, loss=importable_name(loss))


def _configured(run_config: Mapping[str, object] | None) -> Protocol:
    """What a run configuration says of local training; what it does not say is logged."""
    if run_config is None:
        return Protocol()
    found = announced_settings(run_config)
    for key, why in found.refused.items():
        _logger.warning("the run configuration's %s is not understood: %s", key, why)
    missing = {"learning_rate": "learning rate", "batch_size": "batch size"}
    absent = [words for name, words in missing.items() if name not in found.fields]
    absent += [] if found.fields.keys() & {"local_epochs", "local_steps"} else ["number of local epochs or steps"]
    if absent:
        _logger.warning(
            "the run configuration names no %s; what the replies say of it is used, and the notes beside the tape can "
            "say it afterwards",
            " and no ".join(absent),
        )
    return Protocol(**found.fields)


def looks_like_buffer(name: str, value: np.ndarray) -> bool:
    """Whether an array of a state dict is a buffer; optimisers do not train whole numbers or running statistics."""
    last = name.rsplit(".", 1)[-1]
    return value.dtype.kind in "iub" or last in {"running_mean", "running_var"}
