"""Ranges of gradient matching's settings, and which of them contradict each other."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from attacker.attacks.replaying import LOCAL_TRAINING
from attacker.engine import DISTANCES

if TYPE_CHECKING:
    from attacker.attacks.gradient_matching import GradientMatching

OPTIMISERS = ("adam", "l-bfgs")
LABELS = ("recovered", "joint")


def check_settings(settings: GradientMatching) -> None:
    """Check each setting alone, then all together.

    Raises:
        ValueError: If one is out of its range, or two contradict each other.
    """
    _whole("iterations", settings.iterations, 1)
    _whole("restarts", settings.restarts, 1)
    _whole("history", settings.history, 0)
    if not 0 < settings.learning_rate < float("inf"):
        raise ValueError(f"expected a positive, finite learning_rate, got {settings.learning_rate!r}")
    if not 0 <= settings.total_variation < float("inf"):
        raise ValueError(f"expected a finite total_variation of 0 or more, got {settings.total_variation!r}")
    for name, flag in (("signed", settings.signed), ("boxed", settings.boxed)):
        if not isinstance(flag, bool):
            raise ValueError(f"expected {name} to be True or False, got {flag!r}")
    _one_of("distance", settings.distance, tuple(DISTANCES))
    _one_of("optimiser", settings.optimiser, OPTIMISERS)
    _one_of("labels", settings.labels, LABELS)
    _one_of("local_training", settings.local_training, LOCAL_TRAINING)
    if settings.distance == "cosine" and not 0 < settings.converged_below <= 2:
        raise ValueError(f"expected converged_below in (0, 2] for a cosine distance, got {settings.converged_below!r}")
    if not 0 < settings.converged_below < float("inf"):
        raise ValueError(f"expected a positive, finite converged_below, got {settings.converged_below!r}")
    _check_together(settings)


def _check_together(settings: GradientMatching) -> None:
    if settings.optimiser == "adam":
        if settings.history:
            raise ValueError(f"adam remembers no steps: expected history=0, got {settings.history}")
        if settings.labels == "joint":
            raise ValueError("labels='joint' needs optimiser='l-bfgs', which has no box and no prior on the labels")
        return
    if settings.history < 1:
        raise ValueError("optimiser='l-bfgs' needs a history of 1 or more steps; DLG uses 100")
    for name, unfit, why in (
        ("signed", settings.signed, "its curvature estimate needs the gradient itself, not signs"),
        ("boxed", settings.boxed, "a projection would break its line search"),
        ("total_variation", settings.total_variation > 0, "total variation has kinks, and it needs a smooth loss"),
    ):
        if unfit:
            expected = "0" if name == "total_variation" else "False"
            raise ValueError(f"optimiser='l-bfgs' does not fit {name}: {why}; set {name} to {expected}")


def _whole(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"expected {name} to be a whole number of {least} or more, got {value!r}")


def _one_of(name: str, value: str, allowed: Collection[str]) -> None:
    if value not in allowed:
        raise ValueError(f"expected {name} to be one of {', '.join(allowed)}, got {value!r}")
