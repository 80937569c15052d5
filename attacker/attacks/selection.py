"""Selection of attacks against a defence: plain ones for comparison, and those that answer it, strongest first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from attacker.attacks.announced_update import COMPARED, compared_parts
from attacker.attacks.registry import ATTACKS, build_attack, entry_of
from attacker.reasons import Reason, because, coded, joined
from attacker.victim import Victim
from fl_precode.defences.registry import defence_parts
from fl_precode.observation import Observation, Protocol
from fl_precode.spec import spec_name

COMPARED_WITH: Final = "inverting-gradients"
"""The search that is run on a defence before all others, whatever plug-ins there are."""

_PAPER_WAY: Final = 70.0
_LONGEST_STEP: Final = 0.1

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

    @property
    def reason_codes(self) -> tuple[str, ...]:
        """Codes of the reason (docs/reference/codes.md), that of the whole first."""
        return coded(self.reason).codes


def strongest_first() -> list[str]:
    """Attacks but for the plain searches, by what they reach where they fit; what plug-ins say nothing of comes last.

    >>> strongest_first()[:3]
    ['first-layer', 'patch-embedding', 'through-bottleneck']
    """
    return [name for name, entry in ATTACKS.items() if not entry.plain_search]


def plain_searches() -> list[str]:
    """Attacks that ignore every defence, and that a defence is compared with.

    >>> plain_searches()
    ['inverting-gradients', 'statistics-matching', 'idlg', 'dlg', 'see-through-gradients', 'statistics-only']
    """
    return [name for name, entry in ATTACKS.items() if entry.plain_search]


def is_compared_with(attack: str) -> bool:
    """Whether an attack, by name or spec, is the search that a defence is compared with before all others.

    >>> is_compared_with("inverting-gradients:iterations=9"), is_compared_with("dlg")
    (True, False)
    """
    return spec_name(attack) == COMPARED_WITH


def attacks_for(
    victim: Victim,
    *,
    observation: Observation | None = None,
    protocol: Protocol | None = None,
    defence: str | None = None,
) -> list[Choice]:
    """The attacks to consider for a victim: those that answer most of the defence first, then the stronger ones.

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
    names = [name for name in ranked(spec) if answers(name, spec) or not needs_defence(name)]
    choices = [_choice(name, spec, victim, observation) for name in names]
    return sorted(choices, key=lambda choice: choice.role == "plain")


def answers(attack: str, defence: str, *, drops: bool = False) -> tuple[str, ...]:
    """Parts of a defence spec that an attack answers, in their order; ``attack`` is a name or a spec.

    A search for what a defence in the model drew answers nothing where there is none of its kind; and what is exact
    only because a defence cannot touch it is touched as soon as one other part can: it answers all or nothing.

    Args:
        attack: Its name, or a spec.
        defence: The whole defence.
        drops: Whether the model has dropout of its own, besides what was announced.

    >>> answers("ignore:iterations=10", "precode+noise:std=0.1"), answers("ignore", "noise:std=0.1")
    (('precode', 'noise'), ())
    >>> answers("first-layer", "precode+clip:max_norm=1"), answers("first-layer", "precode+prune:share=0.5")
    (('precode', 'clip'), ())
    """
    entry, parts = entry_of(attack), parts_of(defence)
    answerable = entry.answers_as(attack) & ({*parts} - COMPARED | compared_parts(parts))
    answered = tuple(part for part in parts if part in answerable)
    if entry.inside and not entry.inside & {*parts, *(["dropout"] if drops else [])}:
        return ()
    return () if entry.oblivious and len(answered) < len(parts) else answered


def parts_of(defence: str) -> tuple[str, ...]:
    """Names of a defence's parts in order; none for ``none`` and for ``unknown``.

    >>> parts_of("precode:latent=8+noise:std=1e-3"), parts_of("none")
    (('precode', 'noise'), ())
    """
    return tuple(part.name for part in defence_parts(defence) if part.name not in ("none", "unknown"))


def not_compared(defences: Iterable[str]) -> frozenset[str]:
    """Parts that searches compare by themselves, and not in one of these defences, beside its other parts.

    >>> sorted(not_compared(["sign", "precode+noise:std=0.1+sign"]))
    ['sign']
    """
    every = [set(parts_of(defence)) & COMPARED for defence in defences]
    return frozenset(part for parts in every for part in parts - compared_parts(parts))


def unanswerable(defence: str) -> tuple[str, ...]:
    """Parts that no attack answers which answers the most of this defence; empty where one answers all.

    >>> unanswerable("dropout+prune:share=0.9"), unanswerable("noise:std=0.1+sign")
    ((), ('sign',))
    """
    parts = parts_of(defence)
    most = max((answers(name, defence) for name in ATTACKS), key=len, default=())
    return tuple(part for part in parts if part not in most)


def why_run(attack: str, defence: str, *, drops: bool = False) -> Reason:
    """What an attack that runs answers of a defence, what it ignores, and what every attack here would ignore."""
    parts, answered = parts_of(defence), answers(attack, defence, drops=drops)
    if not parts:
        return because("no-defence")
    left = [part for part in parts if part not in answered]
    if answered:
        words = [because("answers-defence", names=", ".join(answered))]
        words += [because("ignores-defence", names=", ".join(left))] if left else []
    else:
        words = [because("ignores-defence.compared", names=", ".join(parts))]
    open_ = unanswerable(defence)
    if open_ and (answered or len(open_) == len(parts)):
        words.append(because("nothing-answers.as-well" if answered else "nothing-answers", names=" and ".join(open_)))
    return joined(words)


def ranked(defence: str, *, drops: bool = False) -> list[str]:
    """All registered attacks: those that answer most of the defence, then the others, each strongest first.

    Attacks that answer a defence come last where there is none of theirs, even if the model itself has what they
    answer: the plain ones are what everything is compared with.

    Args:
        defence: The whole defence.
        drops: Whether the model has dropout of its own, besides what was announced.
    """
    names = [*strongest_first(), *plain_searches()]
    known = {name: len(answers(name, defence, drops=drops)) for name in names}
    last = {name for name in names if needs_defence(name) and not known[name]}
    return sorted(names, key=lambda name: (-known[name], name in last))


def with_iterations(attack: str, iterations: int, *, priors: str = "", starts: int = 1) -> str:
    """The spec of an attack with a number of iterations, as far as it takes one.

    Searches that have the presets of gradient matching take that of the PRECODE paper, whose steps of 0.01 get longer
    where iterations are fewer, so that a candidate gets as far: see `paper_step`.

    Args:
        attack: Its name.
        iterations: Iterations of a search.
        priors: Weights of total variation that are raced; empty for the paper's.
        starts: Starts of a search.

    >>> with_iterations("inverting-gradients", 1000), with_iterations("first-layer", 1000)
    ('inverting-gradients:preset=precode-paper,iterations=1000,learning_rate=0.07', 'first-layer')
    >>> with_iterations("dlg", 500, starts=2)
    'dlg:iterations=500,restarts=2'
    """
    more = f",restarts={starts}" if starts > 1 else ""
    options = entry_of(attack).options
    if "iterations" not in options:
        return attack
    if "preset" not in options:
        return f"{attack}:iterations={iterations}{more}"
    raced = f",total_variations={priors}" if priors else ""
    rate = f"{paper_step(iterations):g}"
    return f"{attack}:preset=precode-paper,iterations={iterations},learning_rate={rate}{raced}{more}"


def paper_step(iterations: int) -> float:
    """Step of Inverting Gradients with a number of iterations: the PRECODE paper makes 7,000 of 0.01.

    Never longer than the 0.1 of Geiping et al.

    >>> paper_step(7_000), paper_step(1_000), paper_step(300)
    (0.01, 0.07, 0.1)
    """
    return min(_LONGEST_STEP, round(_PAPER_WAY / iterations, 4))


def needs_defence(attack: str) -> bool:
    """Whether an attack, by name or spec, is none without a defence to answer.

    >>> needs_defence("ignore:iterations=10"), needs_defence("hybrid")
    (True, False)
    """
    return "defence" in entry_of(attack).needs


def _choice(name: str, defence: str, victim: Victim, observation: Observation | None) -> Choice:
    role: Role = "adaptive" if answers(name, defence) else "plain"
    refusal = None
    if observation is not None:
        refusal = build_attack(name).why_not(victim, observation)
    if refusal is not None:
        return Choice(spec=name, role=role, applies=False, reason=because("not-applicable", why=refusal))
    reason = why_run(name, defence) if parts_of(defence) else because("no-defence.to-answer")
    return Choice(spec=name, role=role, applies=True, reason=reason)
