"""Attacks on a defended model: those that ignore the defence, and those made with it in mind."""

from __future__ import annotations

from attacker.attacks.registry import ATTACKS, entry_of
from attacker.attacks.selection import COMPARED_WITH, answers, needs_defence, with_iterations
from attacker.experiments.scales import Scale
from fl_precode.spec import spec_name

_DLG_WITHOUT_LABELS = "idlg"
"""Labels are granted, so that nothing is left in which it differs from "dlg"."""

PATIENCE = 4
"""Times the scale's iterations, and restarts, of a patient attacker."""

_PATIENT_PRIOR = "0.01"
"""Weight of total variation, as Geiping et al. take it for batches; 1e-6, as in PRECODE's paper, leaves noise."""


def without_knowledge() -> tuple[str, ...]:
    """Plain attacks: formulas that hold whatever comes behind a layer, and the search that the papers attack with.

    They run as they are whether there is a defence or not, so none of them needs to know it.

    >>> without_knowledge()
    ('first-layer', 'patch-embedding', 'layerwise-inversion', 'spear', 'activation-span', 'inverting-gradients')
    """
    formulas = (name for name, entry in ATTACKS.items() if entry.exact and not entry.works_by_defence)
    return (*formulas, COMPARED_WITH)


def attacks_on(defence: str, scale: Scale) -> tuple[str, ...]:
    """Specs of the plain attacks, then of every adaptive one that answers a part of the defence.

    All searches get the same budget and prior: the paper's, at the scale's iterations. Without a defence there is
    nothing to adapt to. Attacks that do not fit an update refuse it themselves.
    """
    adaptive = (name for name in ATTACKS if is_adaptive(name) and answers(name, defence))
    return tuple(with_iterations(name, scale.iterations) for name in (*without_knowledge(), *adaptive))


def every_attack_on(defence: str, scale: Scale) -> tuple[str, ...]:
    """Specs of all registered attacks that could work: those of `attacks_on`, then every other that needs no defence.

    To recommend a defence takes more than to compare some: noise that stops one search may not stop the next.
    """
    known = attacks_on(defence, scale)
    passed = {*map(spec_name, known), _DLG_WITHOUT_LABELS}
    others = [
        name
        for name, entry in ATTACKS.items()
        if name not in passed and not entry.made_of_others and not needs_defence(name)
    ]
    # With settings of their own: the paper's step is for signed Adam.
    return (
        *known,
        *(f"{n}:iterations={scale.iterations}" if "iterations" in ATTACKS[n].options else n for n in others),
    )


def patient_attacks_on(defence: str, scale: Scale) -> tuple[str, ...]:
    """Specs of the searches of `attacks_on` once more, with more time, more starts and a stronger prior.

    Behind pruning of 90 % a search of 1,000 iterations ends far from every image, one of 4,000 reconstructs some.
    """
    names = [spec_name(spec) for spec in attacks_on(defence, scale)]
    patience = {
        "iterations": PATIENCE * scale.iterations,
        "restarts": PATIENCE,
        "total_variation": _PATIENT_PRIOR,
    }
    settings = ",".join(f"{key}={value}" for key, value in patience.items())
    return tuple(f"{name}:{settings}" for name in names if patience.keys() <= set(ATTACKS[name].options))


def is_quick(spec: str) -> bool:
    """Whether an attack is a formula: seconds at most."""
    return entry_of(spec).exact


def is_adaptive(spec: str) -> bool:
    """Whether an attack has to know the defence; one that is made of others is none of either kind."""
    entry = entry_of(spec)
    return entry.works_by_defence and not entry.made_of_others
