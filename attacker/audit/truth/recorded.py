"""Truth that clients recorded themselves, by `fl_precode.flower.record_truth`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from attacker.audit.truth.base import HeldTruth, Located, Truth
from fl_precode.recorded_truth import SUFFIX, RecordedBatch, RecordedHead, Scale, read_batch, read_head

_logger = logging.getLogger(__name__)


class RecordedTruth(HeldTruth):
    """A folder of recorded files. An update is found by the message that it answers, else by its node and round.

    Args:
        folder: That the clients wrote into; several clients' files may have been copied together.
        clients: Node id to name.

    Raises:
        ValueError: If it is no folder, or has no such file.
    """

    def __init__(self, folder: Path, clients: Mapping[str, str]) -> None:
        super().__init__(str(folder), clients)
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder; expected one that record_truth wrote into")
        self._stems: dict[str, list[RecordedHead]] = {}
        self._messages: dict[str, list[RecordedHead]] = {}
        self._places: dict[tuple[str, str], set[str]] = {}
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            try:
                head = read_head(path)
            except (ValueError, OSError) as error:
                _logger.warning("passed over: %s", error)
                continue
            self._stems.setdefault(head.answered.stem, []).append(head)
            self._messages.setdefault(head.answered.message, []).append(head)
            self._places.setdefault((head.answered.node, head.answered.round), set()).add(head.answered.stem)
        if not self._stems:
            raise ValueError(f"{folder} has no file of record_truth; expected some that end in {SUFFIX}")

    def knows(self, entry: Located) -> bool:
        """Whether a client recorded something for the update."""
        return bool(self._heads(entry))

    def truth(self, entry: Located) -> Truth | None:
        """All images that the client recorded for the message, each once."""
        batches = self._batches(entry)
        if not batches:
            return None
        return _chosen(batches, [key for batch in batches for key in batch.used])

    def steps(self, entry: Located) -> list[Truth]:
        """The batch of each call."""
        batches = self._batches(entry)
        return [_chosen(batches, batch.used, once=False) for batch in batches if batch.used]

    def classes(self, entry: Located) -> tuple[int, ...] | None:
        """Read from labels alone."""
        try:
            labels = [read_batch(head.path, images=False).labels.tolist() for head in self._heads(entry)]
        except (ValueError, OSError):
            return None
        return tuple(sorted({label for some in labels for label in some})) or None

    @property
    def scale(self) -> Scale | None:
        """As the clients gave it; None where they differ."""
        scales = {head.scale for heads in self._stems.values() for head in heads}
        return scales.pop() if len(scales) == 1 else None

    def held(self) -> Iterator[Truth]:
        """File by file."""
        for heads in self._stems.values():
            for head in heads:
                try:
                    batch = read_batch(head.path)
                except (ValueError, OSError) as error:
                    _logger.warning("passed over: %s", error)
                else:
                    yield Truth(images=batch.images, labels=batch.labels)

    def _heads(self, entry: Located) -> Sequence[RecordedHead]:
        message = str(getattr(entry, "message", ""))
        heads = self._messages.get(message, []) if message else []
        stems = self._places.get((entry.node, str(entry.round)), set())
        if not heads and len(stems) == 1:
            # A client that knew its message's id answered another message than this update's.
            heads = [head for head in self._stems[min(stems)] if not (message and head.answered.message)]
        return sorted(heads, key=lambda head: head.number)

    def _batches(self, entry: Located) -> list[RecordedBatch]:
        heads = self._heads(entry)
        other = next((head.answered.node for head in heads if head.answered.node not in ("", entry.node)), None)
        if other is not None:
            raise ValueError(f"it was recorded by node {other}, and the update is listed as that of node {entry.node}")
        if not all(head.complete for head in heads):
            raise ValueError("it has more images than record_truth keeps of one message, and is not whole")
        try:
            return [read_batch(head.path) for head in heads]
        except OSError as error:
            raise ValueError(str(error)) from error


def _chosen(batches: Sequence[RecordedBatch], keys: Sequence[bytes], *, once: bool = True) -> Truth:
    images = {key: image for batch in batches for key, image in zip(batch.keys, batch.images, strict=True)}
    labels = {key: label for batch in batches for key, label in zip(batch.keys, batch.labels, strict=True)}
    wanted = list(dict.fromkeys(keys)) if once else list(keys)
    if missing := [key for key in wanted if key not in images]:
        raise ValueError(f"{len(missing)} of its images are missing; were files removed?")
    if len({image.shape for image in images.values()}) > 1:
        raise ValueError("its images are not of one shape")
    return Truth(images=torch.stack([images[key] for key in wanted]), labels=torch.stack([labels[k] for k in wanted]))
