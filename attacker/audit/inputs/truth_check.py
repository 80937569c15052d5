"""Choice of the truth that is scored: a truth that does not belong to an update is named and not compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from attacker.audit.inputs.image_scale import usual_scales
from attacker.audit.inputs.tape_source import Subject
from attacker.audit.inputs.truth_fit import why_not_behind
from attacker.audit.truth.base import Truth, TruthSource, known_scale
from attacker.optim.deadline import time_is_up
from attacker.reasons import Reason, because, joined
from attacker.victim import Victim
from fl_precode.observation import Observation
from fl_precode.tape import TapeEntry

MOST_IMAGES: Final = 64
"""More images behind one update than this are not compared one by one."""

_MOST_OTHERS: Final = 6
_MOST_SAID: Final = 3


@dataclass(frozen=True, kw_only=True)
class CheckedTruth:
    """What a look at the truth of some updates found.

    Attributes:
        refused: File of an update to the reason why its truth is not scored, or that there is none.
        note: The same as sentences; empty when every update has a truth that is scored.
        scored: Whether any update has one.
    """

    refused: Mapping[str, Reason] = field(default_factory=dict)
    note: Reason = Reason("")
    scored: bool = True


def check_truth(subject: Subject, entries: Sequence[TapeEntry]) -> CheckedTruth:
    """Compare the truth of updates with the updates, unless it is known to be what the clients used.

    Args:
        subject: The federation, with its truth.
        entries: Updates that are attacked.
    """
    source = subject.truth
    if source is None or source.exact:
        return CheckedTruth(note=subject.truth_note, scored=source is not None)
    refused: dict[str, Reason] = {}
    said: list[Reason] = []
    unchecked = 0
    for number, entry in enumerate(entries):
        if number and time_is_up():
            unchecked = len(entries) - number
            break
        reason = _why_not_scored(subject, source, entry) if source.knows(entry) else because("truth-missing")
        if reason:
            refused[entry.file] = reason
            said.append(because("truth-refused.update", round=entry.round, node=entry.node, why=reason))
    note = _note(source, said, len(entries), unchecked)
    return CheckedTruth(refused=refused, note=note, scored=len(refused) < len(entries))


def _note(source: TruthSource, said: Sequence[Reason], updates: int, unchecked: int = 0) -> Reason:
    if unchecked:
        early = because("truth-needs-time", origin=source.origin, unchecked=unchecked, updates=updates)
        return joined([early, _note(source, said, updates)], " ")
    if not said:
        return Reason("")
    if len(said) == updates and all("truth-missing" in reason.codes for reason in said):
        return because("truth-of-another-run.attacked", origin=source.origin)
    which = "any" if len(said) == updates else f"{len(said)} of the {updates}"
    more = f" And {len(said) - _MOST_SAID} more." if len(said) > _MOST_SAID else ""
    return because(
        "truth-refused",
        origin=source.origin,
        which=which,
        updates="update" if updates == 1 else "updates",
        are="is" if len(said) == 1 and updates > 1 else "are",
        said=joined(said[:_MOST_SAID], " "),
        more=more,
    )


def _why_not_scored(subject: Subject, source: TruthSource, entry: TapeEntry) -> Reason | None:
    try:
        truth = source.truth(entry)
        steps = source.steps(entry)
    except ValueError as error:
        return because("truth-unreadable.update", error=str(error).rstrip("."))
    if truth is None:
        return because("truth-missing")
    observation, inputs = subject.tape.load(entry), subject.victim.inputs
    if reason := _unlike(truth, observation, subject.victim):
        return reason
    if len(truth.images) > MOST_IMAGES:
        return because("truth-too-large", images=len(truth.images), most=MOST_IMAGES)
    others = list(islice(_others(subject, source, entry), _MOST_OTHERS))
    known = known_scale(source, inputs)
    scales = usual_scales(inputs) if known is None else [known]
    return why_not_behind(subject.victim, observation, steps, others, subject.defence, scales)


def _unlike(truth: Truth, observation: Observation, victim: Victim) -> Reason | None:
    """Why these cannot be the images behind an update, by number, shape and class."""
    count, behind = len(truth.images), observation.batch_size
    if behind is not None and count != behind:
        return because(
            "truth-of-other-number.batches" if count > behind else "truth-of-other-number",
            images=f"{count} image{'' if count == 1 else 's'}",
            behind=behind,
        )
    shape = tuple(truth.images.shape[1:])
    if shape != victim.inputs.shape:
        return because("truth-of-other-shape", shape=shape, expected=victim.inputs.shape)
    if int(truth.labels.max()) >= victim.label_numbers:
        classes = victim.inputs.classes
        return because("truth-of-other-classes", label=int(truth.labels.max()), classes=classes)
    return None


def _others(subject: Subject, source: TruthSource, entry: TapeEntry) -> Iterator[Truth]:
    """What is behind other updates of the tape."""
    for other in subject.tape.entries:
        if other != entry and source.knows(other):
            try:
                truth = source.truth(other)
            except ValueError:
                continue
            if truth is not None:
                yield truth
