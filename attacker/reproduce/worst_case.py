"""Which attacks a defended model has to stand: those that ignore the defence, and those made with it in mind."""

from __future__ import annotations

from attacker.attacks.answers import answers
from attacker.attacks.registry import ATTACKS
from attacker.reproduce.scales import Scale

WITHOUT_KNOWLEDGE = ("first-layer", "layerwise-inversion", "spear", "inverting-gradients")
"""Plain attacks: what the papers attack with, and formulas that hold whatever comes behind a layer. They run as they
are whether there is a defence or not, so none of them needs to know it. Names that are not registered are passed over.
"""

_CONTAINS_OTHERS = "portfolio"


def attacks_on(defence: str, scale: Scale) -> tuple[str, ...]:
    """Specs of the plain attacks, then of every adaptive one that answers a part of the defence.

    All searches get the same budget and prior: the paper's, at the scale's iterations. Without a defence there is
    nothing to adapt to. Attacks that do not fit an update refuse it themselves.
    """
    adaptive = (name for name in ATTACKS if is_adaptive(name) and answers(name, defence))
    plain = (name for name in WITHOUT_KNOWLEDGE if name in ATTACKS)
    return tuple(_spec(name, scale) for name in (*plain, *adaptive))


def is_adaptive(spec: str) -> bool:
    """Whether an attack has to know the defence: it takes it into account, and would not run as it is without."""
    name = spec.partition(":")[0]
    return ATTACKS[name].adaptive and name not in (*WITHOUT_KNOWLEDGE, _CONTAINS_OTHERS)


def _spec(name: str, scale: Scale) -> str:
    budget = {"preset": "precode-paper", "iterations": scale.iterations, "learning_rate": f"{scale.learning_rate:g}"}
    options = ATTACKS[name].options
    own = ",".join(f"{key}={value}" for key, value in budget.items() if key in options)
    return f"{name}:{own}" if own else name
