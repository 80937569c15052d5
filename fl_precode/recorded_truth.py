"""Files in which a client keeps what it trains on, for an audit's evaluation: one a call, each image once a message.

A folder of such files lies on the client's side. No file of it is ever sent, and none holds an update. Each is
safetensors with ``images`` and ``labels`` that are new with it, their ``keys``, and ``used``, the keys of every image
of the batch in its order; the metadata says which message of the server was being answered.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

FORMAT: Final = "fl-precode-truth"
VERSION: Final = "1"
SUFFIX: Final = ".safetensors"
FOLDER_ENDING: Final = ".truth"
"""What the folder is called after its tape: ``/runs/1/tape`` has ``/runs/1/tape.truth``."""

_KEY_BYTES: Final = 16

Scale = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation; one number each for all channels, or one for each channel."""

NO_SCALE: Final[Scale] = ((0.0,), (1.0,))


@dataclass(frozen=True, kw_only=True)
class Answered:
    """Which message of the server a client was answering, as text; empty where it is not known.

    Attributes:
        message: The message's id.
        node: Flower's id of the node that answers.
        round: Round of the federation.
    """

    message: str = ""
    node: str = ""
    round: str = ""

    @property
    def stem(self) -> str:
        """Beginning of the names of its files: the message's id, else node and round."""
        text = self.message or f"{self.node or 'node'}-{self.round or 'round'}"
        return re.sub(r"[^A-Za-z0-9_]+", "-", text)[:100]


@dataclass(frozen=True, kw_only=True)
class RecordedBatch:
    """One file.

    Attributes:
        images: (new, channels, height, width) in [0, 1], those that no earlier file of the message has.
        labels: (new,) class numbers.
        keys: Keys of the new images, in their order.
        used: Keys of the batch, in its order; images that earlier files have included.
    """

    images: Tensor
    labels: Tensor
    keys: tuple[bytes, ...]
    used: tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True)
class RecordedHead:
    """What a file is about, without its images.

    Attributes:
        path: Path of the file.
        answered: The message.
        number: Number of the call, in the order of calls.
        complete: False when what came later was not kept, because it was too much.
        scale: Mean and standard deviation, by channel, of the normalisation that was undone; those of no normalisation
            when the client gave images as they are.
    """

    path: Path
    answered: Answered
    number: int
    complete: bool
    scale: Scale


def truth_folder(tape: Path) -> Path:
    """Where the true images of a tape are kept when nobody says otherwise; the clients write there, no server does."""
    return tape.with_name(tape.name + FOLDER_ENDING)


def image_keys(images: Tensor, labels: Tensor) -> tuple[bytes, ...]:
    """What tells an image with its label from any other."""
    return tuple(
        hashlib.blake2b(image.numpy().tobytes() + bytes(str(int(label)), "ascii"), digest_size=_KEY_BYTES).digest()
        for image, label in zip(images.contiguous(), labels, strict=True)
    )


def to_bytes(
    answered: Answered, number: int, batch: RecordedBatch, *, complete: bool, scale: Scale = NO_SCALE
) -> bytes:
    """Content of a file."""
    tensors = {
        "images": batch.images.contiguous(),
        "labels": batch.labels.contiguous(),
        "keys": _packed(batch.keys),
        "used": _packed(batch.used),
    }
    about = {**asdict(answered), "number": str(number), "complete": str(complete).lower()}
    about["scale"] = json.dumps(scale)
    content: bytes = save(tensors, metadata={"format": FORMAT, "version": VERSION, **about})
    return content


def read_head(path: Path) -> RecordedHead:
    """Read what a file is about.

    Raises:
        ValueError: If it is no file of this format, or a newer one.
        OSError: If it cannot be read.
    """
    with _opened(path) as file:
        about = file.metadata() or {}
    if about.get("format") != FORMAT:
        raise ValueError(f"{path} was not written by record_truth")
    if about.get("version") != VERSION:
        raise ValueError(f"{path} has version {about.get('version')}, and this fl-precode reads {VERSION}; upgrade it")
    answered = Answered(**{name: about.get(name, "") for name in ("message", "node", "round")})
    number = about.get("number", "")
    if not number.isdecimal():
        raise ValueError(f"{path} is damaged: expected the number of the call, got {number!r}")
    try:
        mean, std = (tuple(map(float, column)) for column in json.loads(about.get("scale", "")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged: expected mean and std, got {about.get('scale')!r}") from error
    complete = about.get("complete") == "true"
    return RecordedHead(path=path, answered=answered, number=int(number), complete=complete, scale=(mean, std))


def read_batch(path: Path, *, images: bool = True) -> RecordedBatch:
    """Read a file's content.

    Args:
        path: Path of the file.
        images: False leaves the images unread, for who needs the labels only; they are then of no entries.

    Raises:
        ValueError: If it is damaged.
        OSError: If it cannot be read.
    """
    try:
        with _opened(path) as file:
            labels = file.get_tensor("labels")
            pixels = file.get_tensor("images") if images else torch.zeros(len(labels), 0, 0, 0)
            keys, used = (_unpacked(file.get_tensor(name)) for name in ("keys", "used"))
    except (SafetensorError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if labels.dim() != 1 or pixels.dim() != 4 or not len(labels) == len(pixels) == len(keys):
        raise ValueError(f"{path} is damaged: its images, labels and keys are not of one number")
    return RecordedBatch(images=pixels.to(torch.float32), labels=labels.to(torch.int64), keys=keys, used=used)


def _opened(path: Path) -> Any:
    if not path.is_file() or path.is_symlink():
        raise ValueError(f"{path} is no regular file; expected one that record_truth wrote")
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file ({error}); was it cut off?") from error


def _packed(keys: tuple[bytes, ...]) -> Tensor:
    if not keys:
        return torch.zeros(0, _KEY_BYTES, dtype=torch.uint8)
    return torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).reshape(len(keys), _KEY_BYTES)


def _unpacked(values: Tensor) -> tuple[bytes, ...]:
    return tuple(bytes(row.tolist()) for row in values.to(torch.uint8))
