"""Victim selection: a few updates of a tape, chosen by seed, spread over rounds, nodes and classes."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from enum import Enum, auto
from typing import Final, TypeVar

from attacker.audit.inputs.nothing_to_attack import NothingToAttack, no_update
from attacker.audit.inputs.tape_source import Subject
from attacker.audit.truth.base import Located, TruthSource
from fl_precode.tape import TapeEntry, TapeError

_logger = logging.getLogger(__name__)


_MOST_LOOKED_AT: Final = 512
"""Updates at most whose images are looked at to find different ones."""

E = TypeVar("E", bound=Located)


class _Overlap(Enum):
    """How many of an update's images were in updates before it."""

    NONE = auto()
    SOME = auto()
    ALL = auto()


def ordered_victims(
    entries: Iterable[E],
    *,
    seed: int,
    rank: Callable[[str], str],
    classes: Callable[[E], Hashable] = lambda _entry: None,
) -> list[E]:
    """All entries, in the order in which they are to be attacked; the first n are spread over rounds, nodes, classes.

    The rounds take turns, and each gives the node that had the fewest turns so far, among those with equally few the
    class that had the fewest; draws decide between equals.

    Args:
        entries: The candidates.
        seed: Seed of the draws; equal seeds give equal orders.
        rank: A key for a node. Equal keys in two federations get equal draws, so that the same client's images are
            attacked in both; node ids themselves are random.
        classes: The class of an entry's images, where it is known.
    """
    rng = random.Random(seed)
    waiting: dict[int, list[E]] = {}
    for entry in sorted(entries, key=lambda candidate: (candidate.round, rank(candidate.node))):
        waiting.setdefault(entry.round, []).append(entry)
    for group in waiting.values():
        rng.shuffle(group)
    rounds = list(waiting)
    rng.shuffle(rounds)
    return _take_turns(waiting, rounds, classes)


def _take_turns(waiting: dict[int, list[E]], rounds: Sequence[int], classes: Callable[[E], Hashable]) -> list[E]:
    nodes: Counter[str] = Counter()
    class_turns: Counter[Hashable] = Counter()
    order: list[E] = []
    while any(waiting.values()):
        for number in rounds:
            group = waiting[number]
            if group:
                chosen = min(group, key=lambda candidate: (nodes[candidate.node], class_turns[classes(candidate)]))
                group.remove(chosen)
                nodes[chosen.node] += 1
                class_turns[classes(chosen)] += 1
                order.append(chosen)
    return order


def node_rank(truth: TruthSource | None, node: str) -> str:
    """A key for a node that is the same in every federation where it is known which client the node is."""
    return f"unknown {node}" if truth is None else truth.rank(node)


def choose_updates(
    subject: Subject, *, victims: int, seed: int, rounds: tuple[int, int] | None = None
) -> list[TapeEntry]:
    """The updates to attack; those that the tape cannot give are passed over (the tape names them).

    Nodes whose truth can be known come first: an update without truth shows nothing. Of these come first those whose
    images no update before them holds, as far as there are any: an image that is attacked twice counts once. Classes
    count where one update is of one image, or of images of one class.

    Args:
        subject: The federation.
        victims: Updates wanted; fewer when there are fewer.
        seed: Seed of the draws.
        rounds: First and last round to choose from; None for all.

    Raises:
        NothingToAttack: If the tape has no update, none in these rounds, or none that can be read.
    """
    truth = subject.truth

    def classes(entry: TapeEntry) -> Hashable:
        return truth.classes(entry) if truth is not None and truth.knows(entry) else None

    first, last = rounds or (0, 2**62)
    order = ordered_victims(
        [entry for entry in subject.tape.entries if first <= entry.round <= last],
        seed=seed,
        rank=lambda node: node_rank(truth, node),
        classes=classes,
    )
    if truth is not None:
        order.sort(key=lambda entry: not truth.knows(entry))
        order = different_first(order, truth, victims)
    chosen: list[TapeEntry] = []
    for entry in order:
        if len(chosen) == victims:
            break
        try:
            subject.tape.load(entry)
        except TapeError as error:
            _logger.warning("passed over: %s", error)
        else:
            chosen.append(entry)
    if not chosen:
        raise _nothing(subject, rounds)
    return sorted(chosen, key=lambda update: (update.round, node_rank(truth, update.node)))


def different_first(order: Sequence[E], truth: TruthSource, wanted: int) -> list[E]:
    """The updates, those first whose images no update before them holds, then those with some new image.

    Args:
        order: All updates, those whose truth is known first.
        truth: Knows their images.
        wanted: How many will be attacked; no more is looked at than it takes, and at most `_MOST_LOOKED_AT`.
    """
    if len(order) <= wanted:
        return list(order)
    groups: dict[_Overlap, list[E]] = {_Overlap.NONE: [], _Overlap.SOME: [], _Overlap.ALL: []}
    seen: set[bytes] = set()
    for place, entry in enumerate(order):
        if len(groups[_Overlap.NONE]) >= wanted or place == _MOST_LOOKED_AT or not truth.knows(entry):
            break
        prints = truth.prints(entry)
        known = prints & seen
        groups[_Overlap.NONE if not known else _Overlap.SOME if known != prints else _Overlap.ALL].append(entry)
        seen |= prints
    rest = order[sum(map(len, groups.values())) :]
    known_rest = [entry for entry in rest if truth.knows(entry)]
    unknown = rest[len(known_rest) :]
    return [*groups[_Overlap.NONE], *known_rest, *groups[_Overlap.SOME], *groups[_Overlap.ALL], *unknown]


def _nothing(subject: Subject, rounds: tuple[int, int] | None) -> NothingToAttack:
    tape = subject.tape
    if tape.problems:
        why = "; ".join(tape.problems[:3])
    elif tape.entries and rounds is not None:
        why = f"it has no client update in rounds {rounds[0]} to {rounds[1]}"
    else:
        return no_update(tape)
    return NothingToAttack(f"the tape {tape.path} has nothing to attack: {why}", tape=tape.path)
