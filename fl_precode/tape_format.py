"""What stands in a tape's two JSON files, and the checks on it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeGuard

from fl_precode.models.input_spec import InputSpec
from fl_precode.observation import Protocol, UpdateKind

FORMAT = "fl-precode-tape"
VERSION = 1
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

    Raises:
        ValueError: If ``kind`` is another word.
    """

    model: str = "unknown"
    defence: str = "unknown"
    kind: UpdateKind = "weights"
    protocol: Protocol = field(default_factory=Protocol)
    inputs: InputSpec | None = None
    settings: Mapping[str, str | int | float | bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"expected the kind to be one of {', '.join(_KINDS)}, got {self.kind!r}")


@dataclass(frozen=True, kw_only=True)
class TapeEntry:
    """One line of the manifest about a tensor file.

    Attributes:
        round: Of the federation.
        node: Who replied; "" for what the server sent.
        kind: What the reply is.
        batch_size: Distinct images behind the update; None when the protocol does not reveal it.
        file: Path inside the tape.
        sha256: Of the file.
        bytes: Length of the file.
        buffers: Names of the arrays that are no parameters.
        sent: File with what the server had sent in this round; None when it is not on the tape.
    """

    round: int
    node: str
    kind: UpdateKind
    batch_size: int | None
    file: str
    sha256: str
    bytes: int
    buffers: tuple[str, ...] = ()
    sent: TapeEntry | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class TapeFailure:
    """A client without a usable reply in a round, and why."""

    round: int
    node: str
    reason: str


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


def line_from_json(text: bytes, sent: Mapping[int, TapeEntry]) -> tuple[str, TapeEntry | TapeFailure]:
    """Read one line of the manifest.

    Args:
        text: The line.
        sent: Round number to the entry of what the server sent, from the lines before.

    Returns:
        The type of the line (``round``, ``observation``, ``failure``) and its content.

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
    if kind not in ("round", "observation"):
        raise ValueError(f"unknown type {kind!r}")
    entry = _entry(content, sent.get(number) if kind == "observation" else None)
    return kind, entry


def _entry(content: Mapping[str, Any], sent: TapeEntry | None) -> TapeEntry:
    file, sha256, size = content.get("file"), content.get("sha256"), content.get("bytes")
    batch_size, buffers = content.get("batch_size"), content.get("buffers", [])
    if not isinstance(file, str) or not _FILE.fullmatch(file):
        raise ValueError(f"expected a file inside the tape, got {file!r}")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256) or not _is_count(size):
        raise ValueError(f"expected the SHA-256 and the length of {file}")
    if batch_size is not None and not (_is_count(batch_size) and batch_size > 0):
        raise ValueError(f"expected a positive batch size or null, got {batch_size!r}")
    if not isinstance(buffers, list) or not all(isinstance(name, str) for name in buffers):
        raise ValueError("expected a list of buffer names")
    if content.get("kind") not in _KINDS:
        raise ValueError(f"expected the kind to be one of {', '.join(_KINDS)}, got {content.get('kind')!r}")
    return TapeEntry(
        round=content["round"],
        node=str(content.get("node", "")),
        kind=content["kind"],
        batch_size=batch_size,
        file=file,
        sha256=sha256,
        bytes=size,
        buffers=tuple(buffers),
        sent=sent,
    )
