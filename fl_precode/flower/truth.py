"""One line in a client's training code that keeps its true images for an audit: on its side, and never on the tape."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final

import torch
from flwr.app import Context, Message
from torch import Tensor

from fl_precode.places.object_store import path_of, url_of
from fl_precode.private_file import write_private
from fl_precode.recorded_truth import SUFFIX, Answered, RecordedBatch, Scale, image_keys, to_bytes, truth_folder
from fl_precode.true_images import Numbers, true_batch

_logger = logging.getLogger(__name__)

ENVIRONMENT: Final = "FL_PRECODE_TRUTH"
"""Variable of the environment that names the folder."""

MOST_IMAGES: Final = 512
"""Different images kept of one message; an audit compares updates of up to 64."""

MOST_CALLS: Final = 512
"""Calls kept of one message."""

_REMEMBERED: Final = 64
"""Messages whose images a process remembers, so as to write each image once."""

_ROUND_KEYS: Final = ("server-round", "server_round", "current_round", "round")


def record_truth(
    images: Any,
    labels: Any,
    *,
    mean: Numbers = None,
    std: Numbers = None,
    folder: str | Path | None = None,
    message: Message | None = None,
    context: Context | None = None,
) -> None:
    """Keep the images that this client trains on, so that an audit can compare what is reconstructed with them.

    Call it where the client trains, once with all images or with every batch; an image that comes again counts once.
    It finds by itself which message of the server is being answered and writes into files of this client alone:
    nothing is added to the reply or to the tape, and no attack reads them. Whatever goes wrong is logged once, and
    training goes on.

    The folder is ``folder``, or the environment's ``FL_PRECODE_TRUTH``, or ``truth`` in the run configuration, or the
    run configuration's ``tape`` with ``.truth`` behind it, where ``fl-precode audit`` looks.

    Args:
        images: Tensor or array, (batch, channels, height, width), or one image (channels, height, width): floats in
            [0, 1], or bytes.
        labels: Class numbers, (batch,), or rows of zeros and ones, (batch, classes). Soft labels are not recorded.
        mean: Undoes a normalisation, together with ``std``: a number, or one for each channel.
        std: See ``mean``.
        folder: Where to write; made if it is not there, 0700.
        message: What is being answered, for code that a ClientApp does not call itself, such as another thread.
        context: Context of the ClientApp, likewise.
    """
    try:
        caller = sys._getframe(1)
        near, around = _look_around(caller) if message is None or context is None else (None, None)
        message, context = message or near, context or around
        if message is not None and not message.metadata.message_type.startswith("train"):
            return
        answered = answered_by(message, context)
        places = [place for place in (_guard_of(answered), _folder(folder, context)) if place is not None]
        if not places or answered is None:
            missing = "which message is being answered" if places else "where to write"
            advice = "give message=" if places else f"give folder=, or set {ENVIRONMENT}"
            _warn_once(f"true images are not recorded: it is not known {missing}; {advice}")
            return
        batch = true_batch(images, labels, mean=mean, std=std)
        for place in places:
            _RECORDS.write(place, answered, *batch, scale=(_numbers(mean, 0.0), _numbers(std, 1.0)))
    except Exception as error:  # noqa: BLE001 - training must go on whatever happens here
        _warn_once(f"true images are not recorded: {error or type(error).__name__}")


@contextmanager
def recorded_for_a_guard(answered: Answered, folder: Path) -> Iterator[None]:
    """Keep what is recorded of one message in a guard's folder as well, wherever else it goes, while this lasts."""
    _GUARDS[answered.stem] = folder
    try:
        yield
    finally:
        _GUARDS.pop(answered.stem, None)


_GUARDS: dict[str, Path] = {}
"""Folders of guards, by the message whose images they are to get: other threads than the guard's may record them."""


def _guard_of(answered: Answered | None) -> Path | None:
    return None if answered is None else _GUARDS.get(answered.stem)


def _numbers(given: Numbers, default: float) -> tuple[float, ...]:
    return tuple(torch.as_tensor(default if given is None else given, dtype=torch.float64).reshape(-1).tolist())


def _look_around(frame: FrameType | None) -> tuple[Message | None, Context | None]:
    """The message and the context that the nearest caller holds; a ClientApp's own call holds both."""
    message: Message | None = None
    context: Context | None = None
    while frame is not None and (message is None or context is None):
        for value in list(frame.f_locals.values()):
            if message is None and isinstance(value, Message) and not value.metadata.reply_to_message_id:
                message = value
            elif context is None and isinstance(value, Context):
                context = value
        frame = frame.f_back
    return message, context


def _folder(folder: str | Path | None, context: Context | None) -> Path | None:
    named = folder or os.environ.get(ENVIRONMENT)
    settings = {} if context is None else context.run_config
    named = named or str(settings.get("truth", "") or "")
    if named:
        return Path(named).expanduser().absolute()
    tape = str(settings.get("tape", "") or "")
    if not tape or url_of(tape):  # true images go to no object store
        return None
    return truth_folder(path_of(tape).expanduser().absolute())


def answered_by(message: Message | None, context: Context | None) -> Answered | None:
    """Which message is being answered; None when nothing tells."""
    if message is None:
        return None
    node = message.metadata.dst_node_id or (0 if context is None else context.node_id)
    found = Answered(message=message.metadata.message_id, node=str(node), round=round_of(message))
    return found if found.message or (found.node and found.round) else None


def round_of(message: Message) -> str:
    """The round that the server wrote into a message, else its group; empty without either."""
    records = list(message.content.config_records.values()) if message.has_content() else []
    for key in _ROUND_KEYS:
        for record in records:
            value = record.get(key)
            if isinstance(value, int) and not isinstance(value, bool):
                return str(value)
    group = message.metadata.group_id
    return group if group.isdecimal() else ""


@dataclass
class _Written:
    """What was written about one message."""

    keys: set[bytes] = field(default_factory=set)
    calls: int = 0
    full: bool = False


class _Records:
    """Writes files, and remembers what the last messages have."""

    def __init__(self) -> None:
        self._messages: OrderedDict[tuple[Path, str], _Written] = OrderedDict()
        self._lock = threading.Lock()

    def write(self, folder: Path, answered: Answered, images: Tensor, labels: Tensor, *, scale: Scale) -> None:
        """Write what is new of a batch.

        Raises:
            OSError: If it cannot be written.
            ValueError: If the folder is that of a tape.
        """
        with self._lock:
            seen = self._of(folder, answered.stem)
            if seen.full:
                return
            used = image_keys(images, labels)
            new = [place for place, key in enumerate(used) if key not in seen.keys and key not in used[:place]]
            seen.full = len(seen.keys) + len(new) > MOST_IMAGES or seen.calls >= MOST_CALLS
            if seen.full:
                new, used = [], ()
            keys = tuple(used[place] for place in new)
            batch = RecordedBatch(images=images[new], labels=labels[new], keys=keys, used=used)
            number = _free_number(folder, answered.stem, seen.calls + 1)
            content = to_bytes(answered, number, batch, complete=not seen.full, scale=scale)
            write_private(folder / _file_name(answered.stem, number), content)
            seen.calls = number
            seen.keys.update(keys)

    def _of(self, folder: Path, stem: str) -> _Written:
        if (folder, stem) not in self._messages:
            _make_folder(folder)
            self._messages[folder, stem] = _Written()
            while len(self._messages) > _REMEMBERED:
                self._messages.popitem(last=False)
        return self._messages[folder, stem]


_RECORDS = _Records()


def _file_name(stem: str, number: int) -> str:
    return f"{stem}-{number:04}{SUFFIX}"


def _free_number(folder: Path, stem: str, number: int) -> int:
    # Another process may answer the same message, and a process that has forgotten one goes on with it.
    while (folder / _file_name(stem, number)).exists():
        number += 1
    return number


def _make_folder(folder: Path) -> None:
    if (folder / "tape.json").exists():
        raise ValueError(f"{folder} is a tape, which the attacker reads; expected another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        return
    folder.chmod(0o700)  # whatever the umask
    _logger.info("true images are kept in %s, for an audit on this side only", folder)


_said: set[str] = set()


def _warn_once(text: str) -> None:
    kind = re.sub(r"[-+\d.]+", "#", text)  # the same with other numbers would come with every batch
    if kind not in _said and len(_said) < 100:
        _said.add(kind)
        _logger.warning("record_truth: %s (training goes on)", text)
