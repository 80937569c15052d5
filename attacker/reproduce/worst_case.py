"""Which attacks a defended model has to stand: those that ignore the defence, and those made with it in mind."""

from __future__ import annotations

from attacker.attacks.answers import answers, needs_defence
from attacker.attacks.registry import ATTACKS
from attacker.reproduce.scales import Scale

WITHOUT_KNOWLEDGE = ("first-layer", "layerwise-inversion", "spear", "inverting-gradients")
"""Plain attacks: what the papers attack with, and formulas that hold whatever comes behind a layer. They run as they
are whether there is a defence or not, so none of them needs to know it. Names that are not registered are passed over.
"""

_CONTAINS_OTHERS = "portfolio"
_DLG_WITHOUT_LABELS = "idlg"
"""Labels are granted, so that nothing is left in which it differs from "dlg"."""

PATIENCE = 4
"""Times the scale's iterations, and restarts, of a patient attacker."""

_PATIENT_PRIOR = "0.01"
"""Weight of total variation, as Geiping et al. take it for batches; 1e-6, as in PRECODE's paper, leaves noise."""

_FORMULAS = ("first-layer", "spear", "layerwise-inversion", "through-bottleneck")


def attacks_on(defence: str, scale: Scale) -> tuple[str, ...]:
    """Specs of the plain attacks, then of every adaptive one that answers a part of the defence.

    All searches get the same budget and prior: the paper's, at the scale's iterations. Without a defence there is
    nothing to adapt to. Attacks that do not fit an update refuse it themselves.
    """
    adaptive = (name for name in ATTACKS if is_adaptive(name) and answers(name, defence))
    plain = (name for name in WITHOUT_KNOWLEDGE if name in ATTACKS)
    return tuple(_spec(name, scale) for name in (*plain, *adaptive))


def every_attack_on(defence: str, scale: Scale) -> tuple[str, ...]:
    """Specs of all registered attacks that could work: those of `attacks_on`, then every other that needs no defence.

    To recommend a defence takes more than to compare some: noise that stops one search may not stop the next.
    """
    known = attacks_on(defence, scale)
    names = {spec.partition(":")[0] for spec in known}
    passed = {*names, _CONTAINS_OTHERS, _DLG_WITHOUT_LABELS}
    others = [name for name in ATTACKS if name not in passed and not needs_defence(name)]
    # With settings of their own: the paper's step is for signed Adam.
    return (
        *known,
        *(f"{n}:iterations={scale.iterations}" if "iterations" in ATTACKS[n].options else n for n in others),
    )


def patient_attacks_on(defence: str, scale: Scale) -> tuple[str, ...]:
    """Specs of the searches of `attacks_on` once more, with more time, more starts and a stronger prior.

    Behind pruning of 90 % a search of 1,000 iterations ends far from every image, one of 4,000 brings some back.
    """
    names = [spec.partition(":")[0] for spec in attacks_on(defence, scale)]
    patience = {
        "iterations": PATIENCE * scale.iterations,
        "restarts": PATIENCE,
        "total_variation": _PATIENT_PRIOR,
    }
    own = ",".join(f"{key}={value}" for key, value in patience.items())
    return tuple(f"{name}:{own}" for name in names if patience.keys() <= set(ATTACKS[name].options))


def is_quick(spec: str) -> bool:
    """Whether an attack is a formula: seconds at most."""
    return spec.partition(":")[0] in _FORMULAS


def is_adaptive(spec: str) -> bool:
    """Whether an attack has to know the defence: it takes it into account, and would not run as it is without."""
    name = spec.partition(":")[0]
    return ATTACKS[name].adaptive and name not in (*WITHOUT_KNOWLEDGE, _CONTAINS_OTHERS)


def _spec(name: str, scale: Scale) -> str:
    budget = {"preset": "precode-paper", "iterations": scale.iterations, "learning_rate": f"{scale.learning_rate:g}"}
    options = ATTACKS[name].options
    own = ",".join(f"{key}={value}" for key, value in budget.items() if key in options)
    return f"{name}:{own}" if own else name
