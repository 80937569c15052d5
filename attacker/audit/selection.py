"""Which updates of a tape are attacked: few, chosen by seed, spread over rounds and nodes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar


class Located(Protocol):
    """Anything that has a round and a node, such as a tape's entry."""

    @property
    def round(self) -> int:
        """Of the federation, from 1."""

    @property
    def node(self) -> str:
        """Node id as text."""


E = TypeVar("E", bound=Located)


def ordered_victims(entries: Iterable[E], *, seed: int, rank: Callable[[str], str]) -> list[E]:
    """All entries, in the order in which they are to be attacked; the first n are spread over rounds and nodes.

    The rounds take turns, and each gives the node that had the fewest turns so far; draws decide between equals.

    Args:
        entries: The candidates.
        seed: Of the draws; equal seeds give equal orders.
        rank: A key for a node. Equal keys in two federations get equal draws, so that the same client's images are
            attacked in both; node ids themselves are random.
    """
    rng = random.Random(seed)
    waiting: dict[int, list[E]] = {}
    for entry in sorted(entries, key=lambda one: (one.round, rank(one.node))):
        waiting.setdefault(entry.round, []).append(entry)
    for group in waiting.values():
        rng.shuffle(group)
    rounds = list(waiting)
    rng.shuffle(rounds)
    return _take_turns(waiting, rounds)


def _take_turns(waiting: dict[int, list[E]], rounds: Sequence[int]) -> list[E]:
    turns: Counter[str] = Counter()
    order: list[E] = []
    while any(waiting.values()):
        for number in rounds:
            group = waiting[number]
            if group:
                chosen = min(group, key=lambda one: turns[one.node])
                group.remove(chosen)
                turns[chosen.node] += 1
                order.append(chosen)
    return order
