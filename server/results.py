"""Results of a run: ``result.json`` for people, ``evaluation.json`` for the evaluation only."""

from __future__ import annotations

import hashlib
import json
import math
import resource
import time
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord

from fl_precode.federation.accounting import PrivacySpent
from fl_precode.federation.config import Settings
from fl_precode.flower.screening import RoundReplies, ScreenedReplies
from fl_precode.private_file import write_private


class RunResults:
    """Collects the figures of each round and writes them after every round, so that a killed run leaves them too.

    Args:
        settings: The run configuration; without ``output_dir`` nothing is written.
        screened: Knows which replies were used and which were left out.
        arrays: The initial arrays, for the payload's size.
        parameters: Trainable parameters.

    Attributes:
        tape_lost: Updates that could not be recorded so far; None when nobody listens.
        privacy: What DP-SGD has spent so far; None without it.
    """

    def __init__(self, settings: Settings, screened: ScreenedReplies, arrays: ArrayRecord, *, parameters: int) -> None:
        self._settings = settings
        self._screened = screened
        self._parameters = parameters
        self._payload_bytes = sum(array.numpy().nbytes for array in arrays.values())
        self._rounds: list[dict[str, Any]] = []
        self._started = self._last = time.monotonic()
        self._finished = False
        self.tape_lost: int | None = None
        self.privacy: PrivacySpent | None = None
        if settings.output_dir:
            Path(settings.output_dir).mkdir(parents=True, exist_ok=True, mode=0o700)

    def add_round(self, server_round: int, arrays: ArrayRecord, accuracy: float, loss: float) -> None:
        """Record a round's central evaluation; round 0 is the untrained model."""
        now = time.monotonic()
        replies = self._screened.rounds.get(server_round, RoundReplies())
        self._rounds.append(
            {
                "round": server_round,
                "accuracy": accuracy,
                "loss": loss if math.isfinite(loss) else None,
                "model_sha256": _sha256(arrays),
                "usable": len(replies.usable),
                "left_out": [{"node": one.node, "reason": one.reason} for one in replies.left_out],
                "seconds": now - self._last,
            }
        )
        self._last = now
        self._write()

    def finish(self) -> None:
        """Mark the result as that of a run which came to its end."""
        self._finished = True
        self._write()

    def _write(self) -> None:
        if not self._settings.output_dir:
            return
        settings = self._settings.to_run_config()
        result = {
            "format": "fl-precode-result",
            "version": 1,
            "finished": self._finished,
            "settings": settings,
            "rounds": self._rounds,
            "parameters": self._parameters,
            "payload_bytes": self._payload_bytes,
            "seconds": time.monotonic() - self._started,
            "tape_lost": self.tape_lost,
            "privacy": self.privacy,
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        nodes = {node: part for replies in self._screened.rounds.values() for node, part in replies.usable.items()}
        evaluation = {"format": "fl-precode-evaluation", "version": 1, "settings": settings, "nodes": nodes}
        folder = Path(self._settings.output_dir)
        write_private(folder / "result.json", json.dumps(result, indent=2).encode())
        write_private(folder / "evaluation.json", json.dumps(evaluation, indent=2).encode())


def _sha256(arrays: ArrayRecord) -> str:
    """SHA-256 of names and values: two runs with equal hashes trained the same model, bit for bit."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(name.encode() + b"\0" + array.numpy().tobytes())
    return digest.hexdigest()
