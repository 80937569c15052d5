"""A verdict in three lines that do not mix: what is shown of images, of labels, and what is guaranteed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from attacker.audit.record.entry import LineState
from attacker.audit.record.flag_sentences import FLAGS
from attacker.audit.record.naming import Identified, identified_in
from attacker.audit.record.privacy import AttackBound, CanaryAudit
from attacker.audit.record.schema import Flag, VerdictLine, VerdictName
from attacker.audit.record.view import FederationView
from attacker.audit.verdict.bounds import bound_of, canaries_of
from attacker.audit.verdict.identified import named_clause, only_adaptive, whose_is_open
from attacker.audit.verdict.labels import labels_line
from attacker.wording import budget, capitalised, counted, defence_name, duration, interval, joined, model_name, percent

_STATES: Final[Mapping[VerdictName, LineState]] = {
    "leaks": "leaks",
    "leaks to an adaptive attacker": "leaks to an adaptive attacker",
    "leaks in part": "leaks in part",
    "not shown to leak": "not shown",
    "held against everything tried": "held",
    "not known": "not known",
}

_SAYS_LITTLE: Final = 0.95
"""Share of images from which on an upper bound bounds nothing that anybody would mind."""

_CONTROL_FAILS: Final = frozenset({"control-not-reconstructed", "control-hardly-reconstructed"})


def lines(view: FederationView, verdict: VerdictName, raised: Sequence[Flag]) -> list[VerdictLine]:
    """The lines of one federation: images, labels where the record has something of them, guarantees.

    Args:
        view: The federation.
        verdict: By the rules of `attacker.audit.verdict.verdict`, about images.
        raised: Its flags.
    """
    of_labels = labels_line(view)
    return [_images(view, verdict, raised), *([of_labels] if of_labels is not None else []), _guarantees(view, raised)]


def _images(view: FederationView, verdict: VerdictName, raised: Sequence[Flag]) -> VerdictLine:
    state = _STATES[verdict]
    if state == "not known" or not view.scored:
        return VerdictLine(
            subject="images",
            state="not known",
            sentence=_unknown(view),
            attacks=len(view.tried),
            **_identified(identified_in(view)),
        )
    union = view.union
    guess = view.guessed / union.images if union.images else None
    number = "None" if not union.back else str(union.back)
    text = (
        f"{number} of {counted(union.images, 'image')} {'was' if union.back < 2 else 'were'} reconstructed (95 % "
        f"interval {interval(*union.interval)}){_without_the_defence(view)}{named_clause(view)}. {_guess(view)}"
    )
    found = identified_in(view)
    if state == "leaks in part" and found is not None and found.naming:
        text += only_adaptive(view, found)
    if state == "leaks in part" and view.lead is not None:
        text += (
            f" But on {view.lead.ahead} of {counted(view.lead.images, 'image')} what was computed from the updates is "
            "nearer to the truth than every guess."
        )
    weak = state in ("not shown", "held")
    return VerdictLine(
        subject="images",
        state=state,
        sentence=text,
        seen=union.back,
        cases=union.images,
        interval=union.interval,
        guess=guess,
        reason=_why_weak(view, state, raised) if weak else "",
        attacks=len(view.tried),
        **_identified(found),
    )


def _identified(found: Identified | None) -> dict[str, Any]:
    """The figures of a line about whose images they are."""
    if found is None:
        return {}
    return {
        "identified": found.count,
        "identified_of": found.images,
        "identified_interval": found.interval,
        "identified_chance": found.chance,
    }


def _without_the_defence(view: FederationView) -> str:
    """What was reconstructed from the control, as a clause with a comma before it; empty without one."""
    if view.control is None or not view.control.scored or not view.control.union.images:
        return ""
    return f", against {percent(view.control.union.success_rate)} without the defence"


def _guess(view: FederationView) -> str:
    """What the best guess reaches; where it does, an attack has to be beyond it."""
    reached = "none of them" if not view.guessed else f"{view.guessed} of them"
    beyond = ", where an image counts only if the attack is well beyond it" if view.guessed else ""
    return f"The best guess without an update is as similar on {reached}{beyond}."


def _unknown(view: FederationView) -> str:
    if not view.tried:
        return "No attack gave a result, so that nothing is known about the images."
    if not view.scored:
        return "The true images are not known: whether what was computed shows them is for eyes to judge." + (
            whose_is_open(view)
        )
    named = capitalised(named_clause(view).removeprefix("; "))
    return "A guess without any update is already so similar to every one of these images that nothing can be told." + (
        f" {named}." if named else ""
    )


def _why_weak(view: FederationView, state: LineState, raised: Sequence[Flag]) -> str:
    """Why a result that shows no image is no protection, in words that a person can use."""
    if state == "held":
        return "A stronger attack still might succeed."
    weak = [flag for flag in raised if flag.weak]
    rest = list(dict.fromkeys(FLAGS[flag.name].phrase for flag in weak if flag.name not in _CONTROL_FAILS))
    reasons = [_no_known_attack(view)] if any(flag.name in _CONTROL_FAILS for flag in weak) else []
    if rest:
        reasons.append(f"{'Besides, ' if reasons else ''}{joined(rest)}.")
    return capitalised(" ".join(reasons))


def _no_known_attack(view: FederationView) -> str:
    """That the attacks fail without a defence as well, which says nothing about later ones."""
    federation = view.federation
    statistics = " with batch statistics" if federation.statistics else ""
    size = federation.batch_size
    behind = "" if size is None else f" from {'one image' if size == 1 else f'{size} images'} an update"
    defence = ", with or without the defence" if view.defended and view.control is not None else ""
    return (
        f"No attack that was tried reconstructs {model_name(federation.model)}{statistics}{behind}{defence}; this says "
        "nothing about tomorrow's attacks."
    )


def tried(view: FederationView) -> str:
    """What was tried, when, and what it cost, as a sentence; empty where nothing was.

    It is no part of the line: the same audit again has the same lines.
    """
    if not view.tried:
        return ""
    day = view.record.created.partition("T")[0]
    seconds = sum(summary.seconds for summary in view.tried)
    return f"Tried on {day}: {counted(len(view.tried), 'attack')}, {duration(seconds)} of processor time."


def _guarantees(view: FederationView, raised: Sequence[Flag]) -> VerdictLine:
    claims, bound, canaries = view.federation.claims, bound_of(view), canaries_of(view)
    refuted = next((flag for flag in raised if flag.name in ("claim-refuted", "above-the-bound")), None)
    if refuted is not None:
        return VerdictLine(subject="guarantees", state="refuted", sentence=refuted.sentence)
    if claims is None or not claims.holds:
        return VerdictLine(subject="guarantees", state="no guarantee", sentence=_none(view))
    epsilons = _epsilons(view, bound, canaries)
    if bound is None or bound.most is None:
        why = f" {capitalised(bound.reason)}." if bound is not None and bound.reason else ""
        return VerdictLine(
            subject="guarantees", state="no guarantee", sentence=f"{epsilons} It bounds no attack on images.{why}"
        )
    most = f"No attack reconstructs more than {percent(bound.most)} of the images while the defence keeps its promise"
    if bound.most >= _SAYS_LITTLE:
        text = f"{epsilons} {most}, which guarantees nothing."
        return VerdictLine(subject="guarantees", state="no guarantee", sentence=text)
    measured = "" if bound.measured is None else f" (measured {percent(bound.measured)})"
    return VerdictLine(subject="guarantees", state="bounded", sentence=f"{epsilons} {most}{measured}.")


def _none(view: FederationView) -> str:
    """Why there is no guarantee."""
    claims = view.federation.claims
    if claims is not None and claims.why_not:
        return f"None holds: {claims.why_not.rstrip('.')}."
    if not view.defended:
        return "There is no defence, and nothing bounds what any attack can learn."
    return (
        f"{capitalised(defence_name(view.federation.defence))} promises nothing that bounds what any attack can learn."
    )


def _epsilons(view: FederationView, bound: AttackBound | None, canaries: CanaryAudit | None) -> str:
    """Claim, formula and what canaries refute, in a sentence."""
    claims = view.federation.claims
    parts = [] if claims is None or claims.claimed_epsilon is None else [f"{budget(claims.claimed_epsilon)} is claimed"]
    rounds = [] if claims is None else [one for one in claims.guarantees if one.a_round is not None]
    if bound is not None and bound.formula is not None:
        parts.append(f"{budget(bound.formula)} follows from clip and noise")
    elif rounds:
        parts.append(f"{budget(rounds[0].a_round)} follows from clip and noise")
    if canaries is not None and canaries.epsilon is not None:
        parts.append(f"canaries show at least {budget(canaries.epsilon)}")
    return f"Epsilon of a round: {joined(parts)}." if parts else "No epsilon is known."
