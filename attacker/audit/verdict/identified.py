"""Identified images in a verdict: flags, the clause of the line about images, the sentence of a leak."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from attacker.attacks.registry import attack_title
from attacker.audit.record.flag_sentences import Found, raised_flag
from attacker.audit.record.naming import Identified, LinedUp, identified_in
from attacker.audit.record.view import FederationView
from attacker.wording import capitalised, chance, count, counted, interval, was

_NOT_TOLD: Final = {
    "identification-left-out": "whether one can be identified was not tested",
    "identification-needs-others": "whether one can be identified is not known, because no other image is",
}
"""What lacks where no image had candidates, by its code."""


def images_identified(view: FederationView) -> Iterator[Found]:
    """The flag that images are identified although they were not reconstructed."""
    found = identified_in(view)
    missed = found.victims - view.back() if found is not None else frozenset()
    if found is None or not missed:
        return
    best = found.naming[0]
    yield raised_flag(
        "images-identified" if view.nothing_reconstructed else "images-identified.beyond",
        best.summary.attack,
        attack=capitalised(_who(found, best)),
        named=found.count,
        images=counted(found.images, "image"),
        candidates=_candidates(found),
        chance=chance(found.chance),
        missed=len(missed),
        were=was(len(missed), found.images),
    )


def true_images_first(view: FederationView) -> Iterator[Found]:
    """The flag that true images are first by more than chance, and none of them for itself."""
    found = identified_in(view)
    if found is None or found.naming or not found.surest.beyond_chance or not view.nothing_reconstructed:
        return
    best = found.surest
    yield raised_flag(
        "true-images-first",
        best.summary.attack,
        attack=capitalised(attack_title(best.summary.attack)),
        first=f"{best.ranks.first:.3g}",
        images=counted(best.ranks.images, "true image"),
        candidates=_candidates(found),
        chance=chance(best.chance),
    )


def named_clause(view: FederationView) -> str:
    """How many images are identified, as a clause with a semicolon before it; empty where no record says anything."""
    found = identified_in(view)
    if found is None:
        lacks = next((_NOT_TOLD[code] for code in view.federation.identification_codes if code in _NOT_TOLD), "")
        return f"; {lacks}" if lacks else ""
    among = f"among {_candidates(found)} candidates"
    sure = f"95 % interval {interval(*found.interval)}"
    best = found.surest
    if found.count:
        of = "" if found.images == view.union.images else f" of {found.images}"
        return f"; {found.count}{of} {was(found.count, 0)} identified {among} ({sure}, {chance(found.chance)})"
    first, verb = f"{best.ranks.first:.3g}", was(1 if best.ranks.first <= 1 else 2, 0)
    if best.beyond_chance:
        return f"; {first} {verb} first {among}, more than by chance ({chance(best.chance)}), none of them for sure"
    if best.ranks.first >= 1:
        return f"; {first} {verb} first {among}, which may be chance ({chance(best.chance)})"
    return f"; none was identified {among}" + (f" ({sure})" if found.nameable else ", which are too few")


def whose_is_open(view: FederationView) -> str:
    """That nobody can say whose images they are without the true ones; empty in older records."""
    untold = "identification-needs-truth" in view.federation.identification_codes
    return " Whose images they are cannot be told either." if untold else ""


def only_adaptive(view: FederationView, found: Identified) -> str:
    """That it takes knowledge of the defence to name images, with a space before it; empty where it does not."""
    if not view.defended or not all(view.adaptive(one.summary.attack) for one in found.naming):
        return ""
    return " Only attacks that know the defence identified any."


def plain_too(view: FederationView) -> str:
    """That attacks which ignore the defence name images, with a space before it; empty where none does."""
    found = identified_in(view)
    plain = [] if found is None else [one for one in found.naming if not view.adaptive(one.summary.attack)]
    if not plain:
        return ""
    best = plain[0]
    name = capitalised(attack_title(best.summary.attack))
    return (
        f" {name}, which ignores the defence, identified {best.ranks.identified} of "
        f"{counted(best.ranks.images, 'image')} among {count(best.ranks.candidates)} candidates."
    )


def named_text(view: FederationView, found: Identified) -> str:
    """Which images are identified by which attack, in sentences."""
    best = found.naming[0]
    knows = "knows" if view.adaptive(best.summary.attack) else "ignores"
    which = f", which {knows} the defence," if view.defended and _alone(found, best) else ""
    return (
        f"{capitalised(_who(found, best))}{which} identified {found.count} of {counted(found.images, 'image')}: the "
        f"true image is the nearest to its reconstruction among {_candidates(found)} candidates (95 % interval "
        f"{interval(*found.interval)}, {chance(found.chance)}).{only_adaptive(view, found)}"
    )


def _alone(found: Identified, best: LinedUp) -> bool:
    return best.ranks.identified == found.count


def _who(found: Identified, best: LinedUp) -> str:
    return attack_title(best.summary.attack) if _alone(found, best) else "at least one attack"


def _candidates(found: Identified) -> str:
    return f"{count(found.candidates)}{' or more' if found.differ else ''}"
