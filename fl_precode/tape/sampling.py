"""Sampling of a large federation's updates for the tape: every k-th, a reservoir of each round, up to a size."""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from fl_precode.spec import Spec, parse_spec, split_parts

_log = logging.getLogger(__name__)

_MEGABYTE: Final = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What is kept, as a spec says it: ``every:k=10``, ``reservoir:n=120,seed=3``, ``size:megabytes=500``.

    A ``+`` joins a size with one of the others: ``reservoir:n=120+size:megabytes=500``.

    Attributes:
        spec: As it was given.
        every: Interval k: the first update of a run and each k-th after it are kept; 1 for all.
        reservoir: Updates that are kept of each round, each as likely as any other; None for all.
        seed: Seed of the reservoir's choice, which a hash makes: no random generator is asked.
        most_bytes: Maximum size of the tape in bytes; None for no limit.
    """

    spec: str
    every: int = 1
    reservoir: int | None = None
    seed: int = 0
    most_bytes: int | None = None

    @classmethod
    def parse(cls, text: str) -> Sampling:
        """Read a spec.

        Raises:
            ValueError: If it names something else, an option is missing, unknown or out of its range, or two parts say
                how many updates are kept.

        >>> Sampling.parse("reservoir:n=120+size:megabytes=0.5")
        Sampling(spec='reservoir:n=120+size:megabytes=0.5', every=1, reservoir=120, seed=0, most_bytes=500000)
        """
        parts = [parse_spec(part) for part in split_parts(text)]
        names = [part.name for part in parts]
        unknown = [name for name in names if name not in _PARTS]
        if unknown:
            raise ValueError(
                f"no sampling of updates is called {unknown[0]!r}; expected {', '.join(_EXAMPLES)}, or a size joined "
                "with one of the others by a +"
            )
        if len(set(names)) != len(names) or {"every", "reservoir"} <= set(names):
            raise ValueError(
                f"{text!r}: expected one of every and reservoir, and a size at most once, got {' and '.join(names)}"
            )
        fields: dict[str, int] = {}
        for part in parts:
            fields |= _PARTS[part.name](part)
        return cls(spec=text, **fields)


def _every(part: Spec) -> dict[str, int]:
    return {"every": _whole(part, "k", 1)}


def _reservoir(part: Spec) -> dict[str, int]:
    seed = {"seed": _whole(part, "seed", 0, also=("n",))} if "seed" in part.options else {}
    return {"reservoir": _whole(part, "n", 1, also=("seed",)), **seed}


def _size(part: Spec) -> dict[str, int]:
    part.check_options({"megabytes"})
    megabytes = part.number("megabytes")
    if megabytes is None or not 0 < megabytes < math.inf:
        raise ValueError(
            f"{part.text!r}: expected the largest tape in megabytes, above 0, such as size:megabytes=500, "
            f"got {part.options.get('megabytes', 'none')!r}"
        )
    return {"most_bytes": round(megabytes * _MEGABYTE)}


def _whole(part: Spec, key: str, least: int, *, also: Collection[str] = ()) -> int:
    part.check_options({key, *also})
    value = part.integer(key)
    if value is None or value < least:
        raise ValueError(
            f"{part.text!r}: expected {key} to be a whole number of {least} or more, got "
            f"{part.options.get(key, 'none')!r}; for example {_EXAMPLE_OF[part.name]}"
        )
    return value


_PARTS: Final[Mapping[str, Callable[[Spec], dict[str, int]]]] = MappingProxyType(
    {"every": _every, "reservoir": _reservoir, "size": _size}
)
_EXAMPLE_OF: Final = MappingProxyType(
    {"every": "every:k=10", "reservoir": "reservoir:n=120,seed=3", "size": "size:megabytes=500"}
)
_EXAMPLES: Final = tuple(_EXAMPLE_OF.values())


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An update that may be kept.

    Attributes:
        node: Who sent it.
        bytes: Size of its arrays in bytes.
    """

    node: str
    bytes: int


class Sampler:
    """Decides, as updates come in; it keeps none of them and remembers a number a round.

    Args:
        sampling: What is kept.
    """

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._seen = 0
        self._kept: Counter[int] = Counter()
        self.full = False

    def choose(
        self, number: int, candidates: Sequence[Candidate], *, written: int, outstanding: Collection[str] = ()
    ) -> list[bool]:
        """Which updates that have come in together are kept.

        A reservoir is the n smallest of all hashes of (seed, round, node). It is therefore the same in whatever order
        the updates come, is known before any of them is written, and nothing on the tape is ever replaced.

        Args:
            number: Number of the round.
            candidates: The updates.
            written: Bytes that are on the tape.
            outstanding: Nodes whose updates of this round are still to come, where that is known.

        Returns:
            For each candidate whether it is kept.
        """
        in_reservoir = self._in_reservoir(number, candidates, outstanding)
        kept: list[bool] = []
        for candidate, chosen in zip(candidates, in_reservoir, strict=True):
            chosen = chosen and self._seen % self.sampling.every == 0 and self.has_room(written + candidate.bytes)
            self._seen += 1
            written += candidate.bytes if chosen else 0
            kept.append(chosen)
        self._kept[number] += sum(kept)
        return kept

    def has_room(self, total: int) -> bool:
        """Whether a tape of this size is within the limit; once it is not, nothing more is kept.

        Small updates that would still fit are not kept either: a tape of the small ones would be no fair sample.
        """
        most = self.sampling.most_bytes
        if most is not None and not self.full and total > most:
            self.full = True
            _log.warning(
                "the tape has reached its size (%s); no further update is kept, and all are counted",
                self.sampling.spec,
            )
        return not self.full

    def _in_reservoir(self, number: int, candidates: Sequence[Candidate], outstanding: Collection[str]) -> list[bool]:
        if self.sampling.reservoir is None:
            return [True] * len(candidates)
        room = self.sampling.reservoir - self._kept[number]
        here = [(self._priority(number, one.node), place) for place, one in enumerate(candidates)]
        there = [(self._priority(number, node), -1) for node in outstanding]
        first = {place for _, place in sorted(here + there)[: max(room, 0)]}
        return [place in first for place in range(len(candidates))]

    def _priority(self, number: int, node: str) -> bytes:
        key = f"{self.sampling.seed}\0{number}\0{node}"
        return hashlib.sha256(key.encode(errors="surrogatepass")).digest()
