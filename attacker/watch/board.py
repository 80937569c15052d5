"""What the page shows at a moment, put together from the follower's events."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, Final

from attacker.audit.evaluate import SUCCESS_THRESHOLD
from attacker.watch.events import Event

SHOWN: Final = 24
"""Reconstructions on the page: those of the newest rounds."""
_MOST_POINTS = 2000
_MOST_PROBLEMS = 20


class Board:
    """The state of a watch; safe to be used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._version = 0
        self._facts: dict[str, Any] = {"waiting": "The tape was not looked at yet.", "federation": None, "seen": None}
        self._facts |= {"attack": None, "alive": True}
        self._results: list[Event] = []
        self._points: deque[dict[str, Any]] = deque(maxlen=_MOST_POINTS)
        self._problems: deque[str] = deque(maxlen=_MOST_PROBLEMS)

    def take(self, event: Event) -> None:
        """Add one event (`attacker.watch.events`)."""
        with self._lock:
            self._version += 1
            self._add(event)

    def end(self) -> None:
        """The process that attacked is gone."""
        with self._lock:
            self._version += 1
            self._facts |= {"alive": False, "attack": None}

    def state(self, seen: int) -> dict[str, Any] | None:
        """Everything that the page shows, or None when nothing has changed since the version ``seen``."""
        with self._lock:
            if seen == self._version:
                return None
            return {
                "version": self._version,
                "threshold": SUCCESS_THRESHOLD,
                **self._facts,
                "results": [dict(one) for one in self._results],
                "points": [dict(one) for one in self._points if one["ssim"] is not None],
                "problems": list(self._problems),
            }

    def _add(self, event: Event) -> None:
        kind = event["kind"]
        content = {name: value for name, value in event.items() if name != "kind"}
        if kind == "waiting":
            self._facts["waiting"] = event["why"]
        elif kind == "result":
            self._facts["attack"] = None
            # Older rounds are attacked when nothing newer waits; they do not push newer ones off the page.
            newest = sorted([content, *self._results], key=lambda one: (one["round"], one["id"]), reverse=True)
            self._results = newest[:SHOWN]
            self._points.append({"id": event["id"], "round": event["round"], "ssim": event["ssim"]})
        elif kind == "scores":
            for one in (*self._results, *self._points):
                known = event["found"].get(str(one["id"]))
                if known is not None:
                    one.update({name: value for name, value in known.items() if name in one})
        elif kind == "problem":
            self._problems.append(event["text"])
        else:
            self._facts |= {kind: content, "waiting": ""}
