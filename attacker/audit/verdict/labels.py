"""Labels in a verdict: whether updates disclose them, apart from any image (docs/reference/flags.md).

1. All labels of an update were read right on more updates than the best guess without them has by chance: *leaks*.
2. More labels were read right than that guess has, on more updates than by chance: *leaks in part*.
3. Neither, with a defence without which they leak, on enough updates: *held*.
4. Neither otherwise, or none could be read: *not shown*. Where the true labels are not known: *not known*.
"""

from __future__ import annotations

from typing import Final

from attacker.audit.record.entry import LineState, VerdictName
from attacker.audit.record.labels import LabelDisclosure
from attacker.audit.record.naming import identified_in
from attacker.audit.record.schema import VerdictLine
from attacker.audit.record.view import FederationView
from attacker.audit.verdict.flags import LARGEST_SHARE
from attacker.wording import capitalised, chance, count, counted, interval, percent

CHANCE: Final = 0.01
"""Probability of what was read, if updates said nothing of their labels, up to which they are said to disclose them."""


def disclosure_of(view: FederationView) -> LabelDisclosure | None:
    """What the record has of a federation's labels; None in older records, and where there was no time."""
    return next((found for found in view.record.label_disclosures if found.federation == view.federation.id), None)


def leaks(found: LabelDisclosure) -> bool:
    """Whether all labels of updates were read right, more often than the best guess has them."""
    return found.p_value is not None and found.exact > 0 and found.p_value < CHANCE


def leaks_in_part(found: LabelDisclosure) -> bool:
    """Whether more labels were read right than the guess by class frequencies has, by more than chance."""
    return found.p_ahead is not None and found.p_ahead < CHANCE and found.right > found.guess_right


def labels_line(view: FederationView) -> VerdictLine | None:
    """The line about labels; None where the record says nothing of them."""
    found = disclosure_of(view)
    if found is None:
        return None
    if not found.compared:
        return _not_compared(found)
    state, more, reason = _judged(view, found)
    return VerdictLine(
        subject="labels",
        state=state,
        sentence=f"{_seen(found)}{more}",
        seen=found.exact,
        cases=found.compared,
        interval=found.interval,
        guess=found.guess,
        p_value=found.p_value,
        reason=reason,
    )


def _judged(view: FederationView, found: LabelDisclosure) -> tuple[LineState, str, str]:
    """The state of the line, what it says besides the numbers, and why it is no protection."""
    if leaks(found):
        return "leaks", "", ""
    if leaks_in_part(found):
        more = f" On more updates than by chance the reading is ahead of that guess ({chance(found.p_ahead or 0.0)})."
        return "leaks in part", more, ""
    if _held(view, found):
        return "held", " Without the defence the labels leak.", _NO_PROOF
    return "not shown", "", _why_not(found)


_NO_PROOF: Final = "Another way to read labels still might work."


def first_words(view: FederationView, verdict: VerdictName) -> str:
    """What a verdict begins with where labels leak and no image did; empty otherwise."""
    found = disclosure_of(view)
    if found is None or verdict in ("leaks", "leaks to an adaptive attacker") or not leaks(found):
        return ""
    which = f"all {count(found.images)}" if found.right == found.images else f"{found.right} of {count(found.images)}"
    named = identified_in(view)
    silent = verdict == "not known" or (named is not None and named.naming)
    none = "" if silent else ", none of the images"
    return f"the labels of {which} images are disclosed{none}."


def _seen(found: LabelDisclosure) -> str:
    """How many labels were read right, on how many updates all, and what the guess has."""
    low, high = found.interval or (0.0, 1.0)
    text = (
        f"The classes of {count(found.right)} of {counted(found.images, 'image')} were read right from the updates, "
        f"and all of them in {found.exact} of {counted(found.compared, 'update')} (95 % interval "
        f"{interval(low, high)})."
    )
    if found.guess is None or found.p_value is None:
        return text
    return (
        f"{text} The best guess without an update, by class frequencies, has {count(found.guess_right)} of them right. "
        f"It has all labels of an update right in {percent(found.guess)} of updates ({chance(found.p_value)})."
    )


def _held(view: FederationView, found: LabelDisclosure) -> bool:
    control = disclosure_of(view.control) if view.control is not None else None
    if control is None or not leaks(control) or found.interval is None:
        return False
    return found.interval[1] <= max(LARGEST_SHARE, found.guess or 0.0) and found.right <= found.guess_right


def _why_not(found: LabelDisclosure) -> str:
    if found.exact == found.compared:
        few = counted(found.independent, "independent update")
        are = "is" if found.independent == 1 else "are"
        return f"What was read is right, but {few} {are} too few to tell it from that guess."
    return (
        "What was read is no better than that guess, by more than chance. Other ways to read labels, and more updates, "
        "may show more."
    )


def _not_compared(found: LabelDisclosure) -> VerdictLine:
    if found.read:
        return VerdictLine(
            subject="labels",
            state="not known",
            sentence=f"Classes were read from {counted(found.read, 'update')}. The true ones are not known, so that "
            "nobody can say whether they are right.",
        )
    reason = next((reading.reason for reading in found.updates if reading.reason), "")
    return VerdictLine(
        subject="labels",
        state="not shown",
        sentence=f"No classes were read from {counted(len(found.updates), 'update')}.",
        reason=f"{capitalised(reason)}." if reason else "",
    )
