"""Format of a tape's two JSON files, and the checks on it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeGuard

from fl_precode.models.input_spec import InputSpec
from fl_precode.observation import Protocol, UpdateKind

FORMAT = "fl-precode-tape"
VERSION = 2
"""Version 1 held one array record a message and what an update meant; version 2 holds what was said, as it was said."""
HEADER = "tape.json"
MANIFEST = "manifest.jsonl"
PARAMETERS = "parameters"
OBSERVATIONS = "observations"

_KINDS = ("gradient", "weights")
_FILE = re.compile(rf"({PARAMETERS}|{OBSERVATIONS})/[A-Za-z0-9_-]+\.safetensors")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class TapeError(ValueError):
    """A tape, or one entry of it, that cannot be read; the message names the file."""


@dataclass(frozen=True, kw_only=True)
class TapeHeader:
    """Public knowledge about the federation; never seeds, partitions or paths.

    Attributes:
        model: Model spec, ``unknown`` for an app that does not say.
        defence: Defence spec, ``unknown`` for an app that does not say.
        kind: What the clients reply: the gradient, or their weights.
        protocol: What the server knows of a client's work.
        inputs: Input domain; None when not known.
        settings: Further settings that every party knows.
        reply: What the arrays of a reply are, where that was said: ``weights``, ``difference`` (trained minus sent) or
            ``gradient``; ``unknown`` looks at them.
        examples: What the clients' number of examples counts: ``images``, ``batches``, or ``unknown``.

    Raises:
        ValueError: If ``kind``, ``reply`` or ``examples`` is another word.
    """

    model: str = "unknown"
    defence: str = "unknown"
    kind: UpdateKind = "weights"
    protocol: Protocol = field(default_factory=Protocol)
    inputs: InputSpec | None = None
    settings: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    reply: str = "unknown"
    examples: str = "unknown"

    def __post_init__(self) -> None:
        for what, value, words in (
            ("kind", self.kind, _KINDS),
            ("reply", self.reply, ("unknown", "weights", "difference", "gradient")),
            ("examples", self.examples, ("unknown", "images", "batches")),
        ):
            if value not in words:
                raise ValueError(f"expected the {what} to be one of {', '.join(words)}, got {value!r}")


Scalar = str | int | float | bool
Records = Mapping[str, Mapping[str, Scalar]]
"""Name of a MetricRecord or ConfigRecord to its single values."""
Lists = Mapping[str, Mapping[str, tuple[float, ...]]]
"""Name of a MetricRecord to its lists of numbers."""


@dataclass(frozen=True, kw_only=True)
class StoredRecord:
    """One ArrayRecord of a message, in a file of its own.

    Attributes:
        file: Path inside the tape.
        sha256: SHA-256 of the file.
        bytes: Length of the file.
        record: Its name in the message; "" where the tape does not say.
        complex: Names of complex arrays, which are stored as pairs of real numbers.
        skipped: Names of arrays that could not be stored, and why.
    """

    file: str
    sha256: str
    bytes: int
    record: str = ""
    complex: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict, hash=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class TapeEntry(StoredRecord):
    """One line of the manifest about what was sent or replied; its own file holds the record that counts as weights.

    Attributes:
        round: Round of the federation.
        node: Who replied; "" for what the server sent.
        kind: What the reply is.
        batch_size: Distinct images behind the update where that was announced; None leaves it to the reader.
        buffers: Names of the arrays that are no parameters.
        buffers_given: Whether somebody named them; otherwise they were guessed from names and types.
        sent: What the server had sent to this client; None when it is not on the tape.
        extras: Further ArrayRecords of the message, such as control variates.
        message: Identifier of the server's message that is answered; "" where the tape does not say.
        message_type: Flower's type of that message.
        metrics: What the reply's MetricRecords say.
        lists: Lists of numbers in the reply's MetricRecords; tapes of older versions have none.
        configs: What the reply's ConfigRecords say, as far as it is single values.
        asked: What the ConfigRecords of the server's message said.
        weighted_by: Key of the number that the strategy weights this reply by.
    """

    round: int
    node: str
    kind: UpdateKind
    batch_size: int | None
    buffers: tuple[str, ...] = ()
    buffers_given: bool = field(default=False, hash=False, compare=False)
    sent: TapeEntry | None = field(default=None, repr=False)
    extras: tuple[StoredRecord, ...] = ()
    message: str = ""
    message_type: str = ""
    metrics: Records = field(default_factory=dict, hash=False, compare=False, repr=False)
    lists: Lists = field(default_factory=dict, hash=False, compare=False, repr=False)
    configs: Records = field(default_factory=dict, hash=False, compare=False, repr=False)
    asked: Records = field(default_factory=dict, hash=False, compare=False, repr=False)
    weighted_by: str = "num-examples"


@dataclass(frozen=True, kw_only=True)
class TapeFailure:
    """A client without a usable reply in a round, and why."""

    round: int
    node: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class TapeEvaluation:
    """A round in which clients only evaluated; there is nothing in it to attack.

    Attributes:
        round: Round of the federation.
        replies: Clients that answered.
        failed: Those of them that could not.
    """

    round: int
    replies: int
    failed: int


@dataclass(frozen=True, kw_only=True)
class TapeSampling:
    """How many of the updates that came in together were kept, where not all are.

    Attributes:
        round: Round of the federation.
        seen: Updates that came in.
        kept: Those of them that were to be written.
        by: The spec that `fl_precode.tape.sampling.Sampling` reads.
    """

    round: int
    seen: int
    kept: int
    by: str


def header_to_json(header: TapeHeader) -> bytes:
    """The content of ``tape.json``."""
    content = {"format": FORMAT, "version": VERSION, **asdict(header), "settings": dict(header.settings)}
    return (json.dumps(content, indent=2) + "\n").encode()


def header_from_json(text: bytes, file: str) -> TapeHeader:
    """Read ``tape.json``; fields that we do not know are passed over.

    Raises:
        TapeError: If it is no header of a tape, of a newer version, or a field has a value that cannot be.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TapeError(f"{file} is not JSON ({error}); the tape's header is damaged, or this is not a tape") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise TapeError(
            f'{file} is not the header of a tape (no "format": "{FORMAT}"); expected a folder from the interceptor'
        )
    version = content.get("version")
    if not _is_count(version) or version < 1:
        raise TapeError(f"{file}: expected a format version of 1 or more, got {version!r}")
    if version > VERSION:
        raise TapeError(
            f"{file}: tape format {version} is newer than this fl-precode, which reads {VERSION}; upgrade it"
        )
    try:
        return TapeHeader(
            model=_text(content["model"]),
            defence=_text(content["defence"]),
            kind=content["kind"],
            protocol=Protocol(**_known(Protocol, content["protocol"])),
            inputs=None if content["inputs"] is None else _inputs(content["inputs"]),
            settings=dict(content["settings"]),
            reply=_text(content.get("reply", "unknown")),
            examples=_text(content.get("examples", "unknown")),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TapeError(f"{file}: damaged header ({type(error).__name__}: {error})") from error


def _inputs(content: Mapping[str, Any]) -> InputSpec:
    known = _known(InputSpec, content)
    return InputSpec(**{**known, "mean": tuple(known["mean"]), "std": tuple(known["std"])})


def _known(kind: type, content: Mapping[str, Any]) -> dict[str, Any]:
    names = {item.name for item in fields(kind)}
    return {key: value for key, value in content.items() if key in names}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {value!r}")
    return value


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


class SentIndex:
    """What the server sent, by file and by round, from the lines read so far."""

    def __init__(self) -> None:
        self._by_file: dict[str, TapeEntry] = {}
        self._by_round: dict[int, TapeEntry] = {}

    def add(self, entry: TapeEntry) -> None:
        """Note a line about what was sent."""
        self._by_file[entry.file] = entry
        self._by_round[entry.round] = entry

    def answered_by(self, content: Mapping[str, Any]) -> TapeEntry | None:
        """What a reply's line answers; tapes of version 1 have one set of weights a round."""
        file = content.get("sent")
        return self._by_round.get(content["round"]) if file is None else self._by_file.get(str(file))


Line = TapeEntry | TapeFailure | TapeEvaluation | TapeSampling


def line_from_json(text: bytes, sent: SentIndex) -> tuple[str, Line]:
    """Read one line of the manifest.

    Args:
        text: The line.
        sent: What the server sent, from the lines before.

    Returns:
        The type of the line (``round``, ``observation``, ``failure``, ``evaluation``, ``sampling``)
        and its content.

    Raises:
        ValueError: If a field is missing or has a value that the writer never writes.
    """
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("expected a JSON object")
    number, kind = content.get("round"), content.get("type")
    if not _is_count(number):
        raise ValueError(f"expected a round number, got {number!r}")
    if kind == "failure":
        return kind, TapeFailure(round=number, node=str(content.get("node")), reason=str(content.get("reason")))
    if kind == "evaluation":
        replies, failed = content.get("replies"), content.get("failed")
        if not _is_count(replies) or not _is_count(failed):
            raise ValueError(f"expected numbers of replies and failures, got {replies!r} and {failed!r}")
        return kind, TapeEvaluation(round=number, replies=replies, failed=failed)
    if kind == "sampling":
        return kind, _sampling(content)
    if kind not in ("round", "observation"):
        raise ValueError(f"unknown type {kind!r}")
    return kind, _entry(content, sent.answered_by(content) if kind == "observation" else None)


def _sampling(content: Mapping[str, Any]) -> TapeSampling:
    seen, kept = content.get("seen"), content.get("kept")
    if not _is_count(seen) or not _is_count(kept) or kept > seen:
        raise ValueError(f"expected a number of updates seen and how many of them were kept, got {seen!r} and {kept!r}")
    return TapeSampling(round=content["round"], seen=seen, kept=kept, by=str(content.get("by")))


def _entry(content: Mapping[str, Any], sent: TapeEntry | None) -> TapeEntry:
    batch_size, buffers = content.get("batch_size"), content.get("buffers", [])
    if batch_size is not None and not (_is_count(batch_size) and batch_size > 0):
        raise ValueError(f"expected a positive batch size or null, got {batch_size!r}")
    if content.get("kind") not in _KINDS:
        raise ValueError(f"expected the kind to be one of {', '.join(_KINDS)}, got {content.get('kind')!r}")
    extras = content.get("extras", [])
    if not isinstance(extras, list):
        raise ValueError("expected a list of further records")
    return TapeEntry(
        **_stored(content),
        round=content["round"],
        node=str(content.get("node", "")),
        kind=content["kind"],
        batch_size=batch_size,
        buffers=_names(buffers, "buffer names"),
        buffers_given=content.get("buffers_given") is True,
        sent=sent,
        extras=tuple(StoredRecord(**_stored(one)) for one in extras),
        message=str(content.get("message", "")),
        message_type=str(content.get("message_type", "")),
        metrics=_records(content.get("metrics", {})),
        lists=_lists(content.get("lists", {})),
        configs=_records(content.get("configs", {})),
        asked=_records(content.get("asked", {})),
        weighted_by=str(content.get("weighted_by", "num-examples")),
    )


def _stored(content: object) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError("expected a JSON object about a file")
    file, sha256, size = content.get("file"), content.get("sha256"), content.get("bytes")
    if not isinstance(file, str) or not _FILE.fullmatch(file):
        raise ValueError(f"expected a file inside the tape, got {file!r}")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256) or not _is_count(size):
        raise ValueError(f"expected the SHA-256 and the length of {file}")
    skipped = content.get("skipped", {})
    if not isinstance(skipped, dict):
        raise ValueError("expected a table of arrays that were not stored")
    return {
        "file": file,
        "sha256": sha256,
        "bytes": size,
        "record": str(content.get("record", "")),
        "complex": _names(content.get("complex", []), "names of complex arrays"),
        "skipped": {str(name): str(why) for name, why in skipped.items()},
    }


def _names(value: object, what: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"expected a list of {what}")
    return tuple(value)


def _records(content: object) -> Records:
    if not isinstance(content, dict) or not all(isinstance(one, dict) for one in content.values()):
        raise ValueError("expected tables of single values")
    return {
        name: {key: value for key, value in one.items() if isinstance(value, Scalar)} for name, one in content.items()
    }


def _lists(content: object) -> Lists:
    if not isinstance(content, dict) or not all(isinstance(one, dict) for one in content.values()):
        raise ValueError("expected tables of lists of numbers")
    return {
        name: {key: tuple(map(float, values)) for key, values in one.items() if _are_numbers(values)}
        for name, one in content.items()
    }


def _are_numbers(values: object) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in values
    )
