"""Flower's side: strategy wrappers, the FedSGD strategy and the launcher. The only part that imports flwr.

What an app imports is here: ``from fl_precode.flower import Interceptor``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fl_precode.flower.guard import leakage_guard_mod
    from fl_precode.flower.interceptor import Interceptor
    from fl_precode.flower.mods import canary_mod, gradient_defence_mod
    from fl_precode.flower.truth import record_truth
    from fl_precode.flower.wire import ListeningGrid, listening

_PLACES = {
    "Interceptor": "fl_precode.flower.interceptor",
    "ListeningGrid": "fl_precode.flower.wire",
    "leakage_guard_mod": "fl_precode.flower.guard",
    "listening": "fl_precode.flower.wire",
    "canary_mod": "fl_precode.flower.mods",
    "gradient_defence_mod": "fl_precode.flower.mods",
    "record_truth": "fl_precode.flower.truth",
}

__all__ = [
    "Interceptor",
    "ListeningGrid",
    "canary_mod",
    "gradient_defence_mod",
    "leakage_guard_mod",
    "listening",
    "record_truth",
]


def __getattr__(name: str) -> Any:
    """Import on first use: a client that needs one of them must not load what the others need."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_PLACES)}")
    return getattr(import_module(_PLACES[name]), name)
