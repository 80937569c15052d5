"""What touches Flower: strategy wrappers, the FedSGD strategy and the launcher. The only part that imports flwr."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fl_precode.flower.truth import record_truth

__all__ = ["record_truth"]

_WHERE = {"record_truth": "fl_precode.flower.truth"}


def __getattr__(name: str) -> object:
    """Import what is exported when it is asked for: a server has no use for what a client needs."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
