"""What the follower tells the page, one JSON object a line."""

from __future__ import annotations

import json
from typing import Any, Final

KINDS: Final = ("waiting", "federation", "seen", "attack", "result", "scores", "problem")
"""In the field ``kind``:

waiting: nothing can be read yet; ``why``.
federation: the tape was opened; ``model``, ``defence``, ``truth`` (why similarity is not known, or empty).
seen: what the tape holds; ``rounds``, ``updates``, ``left`` (updates not attacked yet), ``failures``.
attack: an attack is under way; ``round``, ``node``, ``attack``, ``done`` in [0, 1].
result: an attack ended; ``id``, ``round``, ``node``, ``attack``, ``reason`` (why there is no picture, or empty),
    ``image`` and ``truth`` (data URIs or null), ``ssim`` (mean, or null), ``guess`` (mean SSIM of the best guesses
    without the update, or null), ``back`` (images that came back beyond those, or null), ``of`` how many, ``seconds``.
scores: the truth became known later; ``found``: id to ``ssim``, ``guess``, ``back``, ``of`` and ``truth``.
problem: something is damaged or failed; ``text``.
"""

Event = dict[str, Any]


def to_line(event: Event) -> str:
    """One line of JSON without line breaks inside."""
    return json.dumps(event, allow_nan=False)


def from_line(line: str) -> Event | None:
    """The event of a line; None for anything else, such as a warning that a library printed.

    >>> from_line('{"kind": "problem", "text": "x"}'), from_line("Warning!"), from_line('{"kind": "other"}')
    ({'kind': 'problem', 'text': 'x'}, None, None)
    """
    try:
        content = json.loads(line)
    except ValueError:
        return None
    return content if isinstance(content, dict) and content.get("kind") in KINDS else None
