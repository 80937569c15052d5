"""The time of an audit: its budget on the clock on the wall, what each part may take of it, and when it is over.

The budget is of the whole command: opening tapes, checking the truth, training controls, measuring, attacks, leakage
indices and the page. Attacks end before it does, so that the rest finds its place; what must be waited for after that,
an iteration or the page, may take a tenth more.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from attacker.jobs.job import Job

OPENING: Final = 0.25
"""Share of the budget until which truths are checked and controls trained."""

MEASURING: Final = 0.05
MOST_MEASURING: Final = 10.0
"""Share of the budget, and seconds, that measuring the costs may take at most."""

_END: Final = 0.06
_LEAST_END: Final = 1.5
_MOST_END: Final = 30.0
"""Share of the budget, and seconds, that are kept for joining results with the truth and for the page."""

INDICES: Final = 0.1
"""Share of the budget that is kept for leakage indices, where they are wanted."""

_PLANNED: Final = 0.85
"""Share of the attacks' time that is planned, because an estimate may be too low."""

_LENIENCE: Final = 2.0
"""How many times its share of the time that is left an attack may take."""

_LEAST_SHARE: Final = 0.03
_PATIENCE: Final = 0.1
"""Shares of the time that is left that every chunk gets, and after which code that does not return is ended."""

_MOST_KEPT: Final = 0.3
"""Share of the time that is left that a chunk leaves to those after it, whatever they are expected to take."""

_SLACK: Final = 2.0
"""Seconds that one iteration, or one import in a new process, may take beyond its time."""


@dataclass(frozen=True)
class Clock:
    """The time of one audit.

    Attributes:
        budget: Seconds; None for as long as it takes.
        indices: Whether leakage indices are wanted at the end.
        began: When the command began, by `time.monotonic`.
    """

    budget: float | None
    indices: bool = False
    began: float = field(default_factory=time.monotonic)

    @property
    def spent(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.began

    def left(self, share: float = 1.0) -> float:
        """Seconds until a share of the budget is spent, not negative; infinite without a budget."""
        return math.inf if self.budget is None else max(0.0, share * self.budget - self.spent)

    def measuring(self) -> float:
        """Seconds that measuring the costs may take, for all federations together."""
        return min(MOST_MEASURING, self.left(MEASURING) if self.budget is None else MEASURING * self.budget)

    def attacking(self) -> float:
        """Seconds that are left for attacks."""
        if self.budget is None:
            return math.inf
        end = min(_MOST_END, max(_LEAST_END, _END * self.budget)) + (INDICES * self.budget if self.indices else 0.0)
        return max(0.0, self.left() - end)

    def finishing(self) -> float:
        """Seconds that leakage indices may take, when the attacks are done."""
        if self.budget is None:
            return math.inf
        return max(0.0, self.left() - min(_MOST_END, max(_LEAST_END, _END * self.budget)))

    def planned(self) -> float | None:
        """Seconds of attacks to plan; None without a budget."""
        return None if self.budget is None else _PLANNED * self.attacking()

    def timed(self, job: Job, rest: Sequence[Job], workers: int) -> Job | None:
        """The job with the time that it gets; None where there is none left.

        It may take twice its share of what is left, so that an estimate that was too low costs little, and leaves
        those that come after it theirs.

        Args:
            job: The next one.
            rest: Those that come after it.
            workers: Who work at a time.
        """
        if self.budget is None:
            return job
        left = self.attacking()
        if left <= 0:
            return None
        cost, others = _LENIENCE * job.cost, sum(later.cost for later in rest) / max(1, workers)
        share = cost / (cost + others) if cost > 0 else 0.0
        least = min(_MOST_KEPT, _LEAST_SHARE * len(rest))
        seconds = left * min(1.0 - least, max(share, workers / (1 + len(rest)), _LEAST_SHARE))
        patience = max(1.5 * seconds + _SLACK, _PATIENCE * left)
        return replace(job, seconds=seconds, patience=min(patience, max(self.left(), _SLACK)))


UNLIMITED: Final = Clock(None)
