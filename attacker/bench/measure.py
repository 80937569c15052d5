"""Interleaved measurements, and what they say about the steady state and the set-up."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from attacker.bench.contenders import PLAIN, Contender, TimedRun

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Median, least and most of the repeats."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Spread of at least one value."""
        return cls(median=statistics.median(values), least=min(values), most=max(values))


@dataclass(frozen=True, kw_only=True)
class SpeedRow:
    """What one contender needed. Times are milliseconds for one iteration of one candidate unless said otherwise.

    Each repeat runs an attack of n iterations and one of 2n. Their difference over n is the steady state; what the
    first took beyond that is set-up (probing of the model, factoring of the observed gradients).

    Attributes:
        name: Name of the contender.
        kind: Kind of the contender.
        candidates: Candidates of the contender.
        iterations: n.
        wall: Steady state, elapsed.
        cpu: Steady state, all threads.
        whole: Set-up included, elapsed, with 2n iterations.
        whole_cpu: Set-up included, all threads, with 2n iterations.
        set_up: Seconds of set-up, elapsed; the median.
        psnr: dB after 2n iterations, mean over the victims.
        matching_loss: Cosine distance after 2n iterations, mean over the victims.
        peak_mib: MiB at the worst, beyond model and observations; None where not measured.
        left_out: Why there are no figures; empty otherwise.
    """

    name: str
    kind: str
    candidates: int
    iterations: int
    wall: Spread | None = None
    cpu: Spread | None = None
    whole: Spread | None = None
    whole_cpu: Spread | None = None
    set_up: float | None = None
    psnr: float | None = None
    matching_loss: float | None = None
    peak_mib: float | None = None
    left_out: str = ""

    @property
    def image_iterations_per_second(self) -> float | None:
        """Steady state: iterations times images in a second; None when the time was below what can be measured."""
        return 1e3 / self.wall.median if self.wall is not None and self.wall.median > 0 else None

    def times_faster(self, base: SpeedRow) -> float | None:
        """How often this one's steady state fits into that of ``base``, by elapsed time."""
        return _ratio(base.wall, self.wall)

    def times_less_cpu(self, base: SpeedRow) -> float | None:
        """The same by CPU time, which other work on the machine disturbs less."""
        return _ratio(base.cpu, self.cpu)


def _ratio(base: Spread | None, spread: Spread | None) -> float | None:
    if base is None or spread is None or min(base.median, spread.median) <= 0:
        return None
    return base.median / spread.median


@dataclass
class _Entry:
    contender: Contender
    short: list[TimedRun] = field(default_factory=list)
    long: list[TimedRun] = field(default_factory=list)
    peak: int | None = None
    left_out: str = ""


def enough_iterations(contender: Contender, *, seconds: float = 0.5) -> int:
    """Iterations for which the contender needs about ``seconds``, at least 10: fewer would drown in disturbances."""
    contender.run(1)
    short, long = contender.run(4), contender.run(8)
    # Other work on the machine stretches the elapsed time, several threads add up in the CPU's.
    needed = min(long.wall - short.wall, long.cpu - short.cpu)
    return max(10, round(seconds * 4 / max(needed, 1e-6)))


def measure(
    contenders: Sequence[Contender],
    *,
    iterations: int,
    repeats: int,
    limit: float,
    progress: Callable[[str], None] | None = None,
) -> list[SpeedRow]:
    """Run every contender in turn, ``repeats`` times, so that what disturbs the machine disturbs all of them.

    Args:
        contenders: Those of one kind with growing numbers of candidates.
        iterations: n, of the short attack; the long one has twice as many.
        repeats: Pairs of attacks of each contender.
        limit: Seconds that a pair may take, as a smaller one of its kind lets expect; longer ones are left out.
        progress: Called with a contender's name before it runs: once to warm up, then once for each repeat.

    Returns:
        One row for each contender, in order.

    Raises:
        ValueError: If a number is below 1.
    """
    if min(iterations, repeats) < 1:
        raise ValueError(f"expected at least 1 iteration and 1 repeat, got {iterations} and {repeats}")
    entries = [_Entry(contender) for contender in contenders]
    report = progress or (lambda _: None)
    for entry in entries:
        report(entry.contender.name)
        expected = _expected(entry.contender, entries)
        if expected is not None and expected > limit:
            entry.left_out = f"about {expected:.0f} s for one measurement, the limit is {limit:.0f} s"
            continue
        entry.contender.run(1)  # what only the first run in a process pays is nobody's speed
        entry.peak = entry.contender.peak() if entry.contender.peak is not None else None
        _measure_pair(entry, iterations)
    for _ in range(repeats - 1):
        for entry in entries:
            report(entry.contender.name)
            if not entry.left_out:
                _measure_pair(entry, iterations)
    return [_row(entry, iterations) for entry in entries]


def _measure_pair(entry: _Entry, iterations: int) -> None:
    entry.short.append(entry.contender.run(iterations))
    entry.long.append(entry.contender.run(2 * iterations))


def _expected(contender: Contender, entries: Sequence[_Entry]) -> float | None:
    """Seconds for a pair: set-up as of the last smaller contender, iterations in proportion; None without one."""
    seconds = None
    for entry in entries:
        other = entry.contender
        if (other.kind == PLAIN) != (contender.kind == PLAIN) or other.candidates >= contender.candidates:
            continue
        if entry.long:
            short, long = entry.short[0].wall, entry.long[0].wall
            grows = contender.candidates / other.candidates
            seconds = 2 * max(0.0, 2 * short - long) + 3 * max(0.0, long - short) * grows
    return seconds


def _row(entry: _Entry, iterations: int) -> SpeedRow:
    contender = entry.contender
    if entry.left_out:
        return SpeedRow(
            name=contender.name,
            kind=contender.kind,
            candidates=contender.candidates,
            iterations=iterations,
            left_out=entry.left_out,
        )
    pairs = list(zip(entry.short, entry.long, strict=True))
    steady = 1e3 / iterations / contender.candidates
    return SpeedRow(
        name=contender.name,
        kind=contender.kind,
        candidates=contender.candidates,
        iterations=iterations,
        wall=Spread.of([(long.wall - short.wall) * steady for short, long in pairs]),
        cpu=Spread.of([(long.cpu - short.cpu) * steady for short, long in pairs]),
        whole=Spread.of([long.wall * steady / 2 for long in entry.long]),
        whole_cpu=Spread.of([long.cpu * steady / 2 for long in entry.long]),
        set_up=statistics.median(2 * short.wall - long.wall for short, long in pairs),
        psnr=entry.long[-1].psnr,
        matching_loss=entry.long[-1].matching_loss,
        peak_mib=None if entry.peak is None else entry.peak / MIB,
    )
