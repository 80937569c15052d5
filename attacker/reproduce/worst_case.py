"""Which attacks a defended model has to stand: those that ignore the defence, and those made with it in mind."""

from __future__ import annotations

from attacker.attacks.registry import ATTACKS
from attacker.reproduce.scales import Scale

PLAIN = ("first-layer", "inverting-gradients")
"""What the papers attack with, and what is exact where it fits. Neither takes the defence into account."""


def attacks_on(defence: str, scale: Scale) -> tuple[str, ...]:
    """Specs of the plain attacks, then of every adaptive attack of the registry; those that do not fit refuse.

    Without a defence there is nothing to adapt to.
    """
    plain = ("first-layer", f"inverting-gradients:preset=precode-paper,{_budget(scale)}")
    if defence == "none":
        return plain
    adaptive = (name for name, entry in ATTACKS.items() if entry.adaptive)
    return (*plain, *(_spec(name, scale) for name in adaptive))


def _spec(name: str, scale: Scale) -> str:
    options = ATTACKS[name].options
    budget = [f"iterations={scale.iterations}"] if "iterations" in options else []
    return f"{name}:{','.join(budget)}" if budget else name


def _budget(scale: Scale) -> str:
    return f"iterations={scale.iterations},learning_rate={scale.learning_rate:g}"
