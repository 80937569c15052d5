"""Which truth is scored: what does not belong to an update is said, and nothing is compared with it."""

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
from attacker.victim import Victim
from fl_precode.observation import Observation
from fl_precode.tape import TapeEntry

MOST_IMAGES: Final = 64
"""More images behind one update than this are not compared one by one."""

_MOST_OTHERS: Final = 6
_MOST_SAID: Final = 3
_NONE: Final = "it has none"


@dataclass(frozen=True, kw_only=True)
class CheckedTruth:
    """What a look at the truth of some updates found.

    Attributes:
        refused: File of an update to the reason why its truth is not scored, or that there is none.
        note: The same as sentences; empty when every update has a truth that is scored.
        scored: Whether any update has one.
    """

    refused: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
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
    refused: dict[str, str] = {}
    said: list[str] = []
    unchecked = 0
    for number, entry in enumerate(entries):
        if number and time_is_up():
            unchecked = len(entries) - number
            break
        reason = _why_not_scored(subject, source, entry) if source.knows(entry) else _NONE
        if reason:
            refused[entry.file] = reason
            said.append(f"Round {entry.round}, client {entry.node}: {reason}.")
    note = _note(source, said, len(entries), unchecked)
    return CheckedTruth(refused=refused, note=note, scored=len(refused) < len(entries))


def _note(source: TruthSource, said: Sequence[str], updates: int, unchecked: int = 0) -> str:
    if unchecked:
        early = (
            f"The budget had no time to compare the truth in {source.origin} with {unchecked} of the {updates} "
            "attacked updates; whether it is theirs is not known."
        )
        return f"{early} {_note(source, said, updates)}".strip()
    if not said:
        return ""
    if len(said) == updates and all(one.endswith(f": {_NONE}.") for one in said):
        return f"The truth in {source.origin} has nothing about any attacked update; is it that of another run?"
    which = "any" if len(said) == updates else f"{len(said)} of the {updates}"
    more = f" And {len(said) - _MOST_SAID} more." if len(said) > _MOST_SAID else ""
    return (
        f"The truth in {source.origin} is not that of {which} attacked update{'' if updates == 1 else 's'}, which "
        f"{'is' if len(said) == 1 and updates > 1 else 'are'} therefore not compared with it. "
        f"{' '.join(said[:_MOST_SAID])}{more}"
    )


def _why_not_scored(subject: Subject, source: TruthSource, entry: TapeEntry) -> str:
    try:
        truth = source.truth(entry)
        steps = source.steps(entry)
    except ValueError as error:
        return str(error).rstrip(".")
    if truth is None:
        return _NONE
    observation, inputs = subject.tape.load(entry), subject.victim.inputs
    if reason := _unlike(truth, observation, subject.victim):
        return reason
    if len(truth.images) > MOST_IMAGES:
        return f"it has {len(truth.images)} images, and no more than {MOST_IMAGES} are compared one by one"
    others = list(islice(_others(subject, source, entry), _MOST_OTHERS))
    known = known_scale(source, inputs)
    scales = usual_scales(inputs) if known is None else [known]
    return why_not_behind(subject.victim, observation, steps, others, subject.defence, scales)


def _unlike(truth: Truth, observation: Observation, victim: Victim) -> str:
    """Why these cannot be the images behind an update, by number, shape and class."""
    count, behind = len(truth.images), observation.batch_size
    if behind is not None and count != behind:
        counted = ' (where clients report batches as examples, write examples = "batches" into the notes)'
        return f"it has {count} image{'' if count == 1 else 's'}, and the update is of {behind}" + (
            counted if count > behind else ""
        )
    shape = tuple(truth.images.shape[1:])
    if shape != victim.inputs.shape:
        return f"its images have the shape {shape}, and the model takes {victim.inputs.shape}"
    if int(truth.labels.max()) >= victim.label_numbers:
        classes = victim.inputs.classes
        return (
            f"it has a label {int(truth.labels.max())}, and the model has {classes} classes, from 0 on (an image with "
            "several classes has a number behind theirs: name the loss that takes rows of zeros and ones, such as "
            "torch.nn:BCEWithLogitsLoss)"
        )
    return ""


def _others(subject: Subject, source: TruthSource, entry: TapeEntry) -> Iterator[Truth]:
    """What is behind other updates of the tape."""
    for other in subject.tape.entries:
        if other != entry and source.knows(other):
            try:
                found = source.truth(other)
            except ValueError:
                continue
            if found is not None:
                yield found
