"""Labels that updates disclose, beside a guess by the class frequencies alone. Evaluation only.

Labels are read as a server reads them, from the update and the model (`attacker.labels.best_labels`), whether or not
any image is attacked and whatever attacks were granted. The guess knows the frequencies of the classes and nothing of
the update: they are counted over the images that the evaluation knows, without those of the update, with one more of
each class, so that a class of which no other image is known can be guessed too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Generator

from attacker.audit.federations.federation import AuditedFederation
from attacker.audit.record.labels import LabelDisclosure, LabelReading
from attacker.audit.settings import AuditSettings
from attacker.labels.best import best_labels
from attacker.labels.prior import chance_of_counts, in_common, likeliest_counts
from attacker.metrics.intervals import chance_of_so_many, exact_interval
from attacker.optim.deadline import time_is_up
from fl_precode.observation import Observation
from fl_precode.tape import TapeEntry

MOST_UPDATES: Final = 64
MOST_LARGE: Final = 16
"""Updates whose labels are read at most: of small models, and of those of a million parameters or more."""

_LARGE: Final = 1_000_000
_PROBES: Final = 256
_PROBES_LARGE: Final = 64


@dataclass(frozen=True, kw_only=True)
class _Read:
    """What was read from one update, beside its truth.

    Attributes:
        observation: The update as the attacker has it.
        counts: Images of each class as they were read; empty where none were.
        said: The method, or why there is none.
        truth: True numbers of images of each class; None where they are not known.
        prints: Prints of the images, equal for equal images.
    """

    observation: Observation
    counts: list[int]
    said: str
    truth: list[int] | None
    prints: frozenset[bytes]

    @property
    def compared(self) -> bool:
        """Whether what was read can be compared with the truth."""
        return self.truth is not None and bool(self.counts) and sum(self.counts) == sum(self.truth)


def label_disclosure(federation: AuditedFederation, settings: AuditSettings) -> LabelDisclosure | None:
    """What the attacked updates of a federation disclose of their labels; of fewer where a deadline comes.

    Args:
        federation: The federation, or a control.
        settings: Say what the attacker knows, and the seed of the random inputs of methods that probe the model.

    Returns:
        Of the updates that there was time for; None where there was none.
    """
    large = sum(value.numel() for value in federation.subject.victim.model.parameters()) >= _LARGE
    found: list[_Read] = []
    for entry in federation.entries[: MOST_LARGE if large else MOST_UPDATES]:
        if time_is_up():
            break
        found.append(_read(federation, entry, settings, _PROBES_LARGE if large else _PROBES))
    return _disclosure(federation, found) if found else None


def _read(federation: AuditedFederation, entry: TapeEntry, settings: AuditSettings, probes: int) -> _Read:
    victim = federation.subject.victim
    observation = settings.knowledge.of(federation.subject.tape.load(entry), federation.subject.defence)
    generator = Generator().manual_seed(settings.seed)
    labels, said = best_labels(victim, observation, generator=generator, probes=probes)
    classes = victim.inputs.classes
    true = federation.true_labels(entry)
    source = federation.subject.truth
    known = source is not None and true is not None and bool(((true >= 0) & (true < classes)).all())
    return _Read(
        observation=observation,
        counts=[] if labels is None else _counts(labels, classes),
        said=said,
        truth=_counts(true, classes) if known and true is not None else None,
        prints=source.prints(entry) if known and source is not None else frozenset(),
    )


def _counts(labels: torch.Tensor, classes: int) -> list[int]:
    counts: list[int] = torch.bincount(labels.cpu().long(), minlength=classes).tolist()
    return counts


def _disclosure(federation: AuditedFederation, found: Sequence[_Read]) -> LabelDisclosure:
    source = federation.subject.truth
    everywhere: Mapping[int, int] = {} if source is None else source.label_counts
    first = [_first_same(found, place) for place in range(len(found))]
    distinct = [place for place in range(len(found)) if first[place] is None]
    shares = [None if read.truth is None else _frequencies(everywhere, read.truth) for read in found]
    others = {place: [found[other] for other in distinct if other not in (place, first[place])]
              for place in range(len(found))}  # fmt: skip
    readings = [_reading(read, shares[place], others[place], first[place]) for place, read in enumerate(found)]
    compared = [reading for reading in readings if reading.right is not None]
    independent = [reading for reading in compared if reading.same_as is None]
    exact = sum(reading.exact for reading in compared)
    chances = [reading.chance or 0.0 for reading in independent]
    ahead, behind = _sides(independent)
    return LabelDisclosure(
        federation=federation.id,
        updates=readings,
        known=min((_others_known(everywhere, read.truth) for read in found if read.truth is not None), default=0),
        read=sum(bool(reading.counts) for reading in readings),
        compared=len(compared),
        exact=exact,
        independent=len(independent),
        interval=exact_interval(exact / len(compared), len(independent)) if independent else None,
        guess=sum(chances) / len(chances) if chances else None,
        p_value=chance_of_so_many(sum(reading.exact for reading in independent), chances) if chances else None,
        images=sum(sum(reading.counts) for reading in compared),
        right=sum(reading.right or 0 for reading in compared),
        guess_right=sum(reading.guess_right or 0 for reading in compared),
        p_ahead=chance_of_so_many(ahead, [0.5] * (ahead + behind)) if independent else None,
    )


def _first_same(found: Sequence[_Read], place: int) -> int | None:
    """Place of the first update with the same images; None where this is a first one, or that is not known."""
    prints = found[place].prints
    return next((before for before in range(place) if prints and found[before].prints == prints), None)


def _others_known(everywhere: Mapping[int, int], own: Sequence[int]) -> int:
    return sum(max(0, everywhere.get(label, 0) - count) for label, count in enumerate(own))


def _frequencies(everywhere: Mapping[int, int], own: Sequence[int]) -> list[float]:
    """Frequency of each class among the images known beside the update's own, and one more of each class."""
    counts = [max(0, everywhere.get(label, 0) - count) + 1 for label, count in enumerate(own)]
    return [count / sum(counts) for count in counts]


def _reading(
    read: _Read, frequencies: Sequence[float] | None, others: Sequence[_Read], first: int | None
) -> LabelReading:
    right = guess_right = chance = None
    if read.compared and read.truth is not None and frequencies is not None:
        likeliest = likeliest_counts(frequencies, sum(read.truth))
        right, guess_right = in_common(read.counts, read.truth), in_common(likeliest, read.truth)
        chance = max(chance_of_counts(likeliest, frequencies), _elsewhere(read, others))
    return LabelReading(
        round=read.observation.round,
        node=read.observation.node,
        images=read.observation.batch_size,
        method=read.said if read.counts else "",
        counts=read.counts,
        right=right,
        guess_right=guess_right,
        chance=chance,
        same_as=first,
        reason="" if read.counts else read.said,
    )


def _elsewhere(read: _Read, others: Sequence[_Read]) -> float:
    """Share of other updates of as many images that have the labels which were read from this one."""
    alike = [other.truth for other in others if other.truth is not None and sum(other.truth) == sum(read.counts)]
    return sum(truth == read.counts for truth in alike) / len(alike) if alike else 0.0


def _sides(readings: Sequence[LabelReading]) -> tuple[int, int]:
    """Updates on which the reading has more labels right than the guess by class frequencies, and fewer."""
    gains = [(reading.right or 0) - (reading.guess_right or 0) for reading in readings]
    return sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
