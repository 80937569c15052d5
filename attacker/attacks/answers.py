"""Which attacks to run against a defence: plain ones for comparison, and those that answer it, strongest first."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from attacker.attacks.registry import ATTACKS, build_attack
from attacker.victim import Victim
from fl_precode.defences import defence_parts
from fl_precode.observation import Observation, Protocol

STRONGEST_FIRST = (
    "first-layer",
    "through-bottleneck",
    "layerwise-inversion",
    "spear",
    "hybrid",
    "then-refine",
    "noise-recovery",
    "noise-restoring",
    "ignore",
    "dropout-inversion",
    "defence-matched",
    "portfolio",
)
"""Attacks by what they reach where they fit: formulas, then systems of equations, then searches with more and with less
knowledge. Names that are not registered are passed over; registered ones that are not here come last."""

PLAIN = ("inverting-gradients", "idlg", "dlg", "see-through-gradients")
"""Attacks that ignore every defence, and that a defence is compared with."""

Role = Literal["plain", "adaptive"]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One attack, and whether to run it.

    Attributes:
        spec: Its name, to which settings may be added.
        role: "adaptive" when it answers a part of the defence, "plain" when it ignores all of it.
        applies: Whether it fits, as far as is known.
        reason: Why it is run, or "not applicable: ..." with the attack's own words.
    """

    spec: str
    role: Role
    applies: bool
    reason: str


def attacks_for(
    victim: Victim,
    *,
    observation: Observation | None = None,
    protocol: Protocol | None = None,
    defence: str | None = None,
) -> list[Choice]:
    """The attacks to consider for a victim: adaptive ones strongest first, then plain ones.

    Without a defence all attacks are plain; those that need none (an analytic one, say) come first all the same.

    Args:
        victim: Public knowledge about the model.
        observation: An update, which attacks look at to say whether they fit; without one it is left open.
        protocol: What was announced, when there is no observation; the observation's own otherwise.
        defence: The defence spec; by default the announced one.

    Raises:
        ValueError: If neither says what the defence is: an attack can only answer what is known.
    """
    announced = observation.protocol if observation is not None else protocol
    spec = defence if defence is not None else (announced.defence if announced is not None else None)
    if spec is None:
        raise ValueError("expected the defence: it was not announced; give defence=, 'none' for none")
    names = [part.name for part in defence_parts(spec) if part.name != "none"]
    found = [_choice(name, names, victim, observation) for name in _candidates(names)]
    return sorted(found, key=lambda one: one.role == "plain")


def answers(attack: str, defence: str) -> tuple[str, ...]:
    """Parts of a defence spec that an attack answers, in their order; ``attack`` is a name or a spec.

    >>> answers("ignore:iterations=10", "precode+noise:std=0.1")
    ('precode',)
    """
    entry = ATTACKS[attack.partition(":")[0]]
    return tuple(part.name for part in defence_parts(defence) if part.name in entry.answers)


def _candidates(defences: Collection[str]) -> list[str]:
    """Names of attacks that answer one of the defences, those that fit models without one, and the plain ones."""
    analytic = [name for name in STRONGEST_FIRST if name in ATTACKS and not needs_defence(name)]
    answering = [name for name, entry in ATTACKS.items() if entry.answers & set(defences)]
    ranked = [name for name in STRONGEST_FIRST if name in answering or name in analytic]
    return [*dict.fromkeys([*ranked, *answering, *(name for name in PLAIN if name in ATTACKS)])]


def needs_defence(attack: str) -> bool:
    """Whether an attack, by name or spec, is none without a defence to answer.

    >>> needs_defence("ignore:iterations=10"), needs_defence("hybrid")
    (True, False)
    """
    return "defence" in ATTACKS[attack.partition(":")[0]].needs


def _choice(name: str, defences: Collection[str], victim: Victim, observation: Observation | None) -> Choice:
    answered = [one for one in defences if one in ATTACKS[name].answers]
    role: Role = "adaptive" if answered else "plain"
    refusal = None
    if observation is not None:
        refusal = build_attack(name).why_not(victim, observation)
    if refusal is not None:
        return Choice(spec=name, role=role, applies=False, reason=f"not applicable: {refusal}")
    if answered:
        left = [one for one in defences if one not in answered]
        reason = f"answers {', '.join(answered)}" + (f"; ignores {', '.join(left)}" if left else "")
    elif defences:
        reason = f"ignores {', '.join(defences)}: what the defence is compared with"
    else:
        reason = "there is no defence to answer"
    return Choice(spec=name, role=role, applies=True, reason=reason)
