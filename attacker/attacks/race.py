"""What an attacker cannot know beforehand is raced: short searches with each choice, then a long one with the best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

from torch import Generator, Tensor

from attacker.attacks.attack import Outcome, Progress, Reconstruction
from attacker.attacks.bounded import share
from attacker.engine import Draws
from attacker.engine.deadline import share_of_time

if TYPE_CHECKING:
    from attacker.attacks.gradient_matching import GradientMatching

_SHARE: Final = 4
_LEAST: Final = 300
_MOST: Final = 500
"""A heat has a fourth of the final's iterations, within these: shorter heats were measured to choose worse."""
_TRIAL: Final = 100
"""Iterations of a trial of labels, at most: wrong ones are far from matching."""
_LONGEST_STEP: Final = 0.1
"""Heats have fewer steps for the same way, which may be this long."""
_FACTOR: Final = 1.5
"""However many the unknowns, a residual so many times the smallest is worse."""

Found = Reconstruction | None


class Search(Protocol):
    """Gradient matching of some of the updates that are attacked together."""

    def __call__(
        self,
        settings: GradientMatching,
        places: Sequence[int],
        labels: Sequence[Tensor | None],
        draws: Draws,
        progress: Progress | None,
        /,
    ) -> list[Found]:
        """A result for each of the places, None where there are no labels to search with."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much one update tells.

    Attributes:
        unknowns: Pixels of its images.
        equations: Elements of the update that are compared and not zero.
    """

    unknowns: int
    equations: int


def heat_iterations(iterations: int) -> int:
    """Iterations of each heat of a race.

    >>> heat_iterations(300), heat_iterations(1000), heat_iterations(7000), heat_iterations(20)
    (300, 300, 500, 20)
    """
    return min(iterations, _MOST, max(_LEAST, iterations // _SHARE))


def heat_of(settings: GradientMatching, weight: float, *, most: int = _MOST) -> GradientMatching:
    """A short search with one weight of the prior, of so many iterations at most.

    It goes as far as the long one by longer steps. Only a heat that is no shorter has all restarts.
    """
    iterations = min(heat_iterations(settings.iterations), most)
    rate = settings.learning_rate
    longer = max(rate, min(_LONGEST_STEP, rate * settings.iterations / iterations))
    return replace(
        settings,
        iterations=iterations,
        learning_rate=longer if settings.optimiser == "adam" else rate,
        warmup=settings.warmup * iterations // settings.iterations,
        total_variation=weight,
        total_variations="",
        restarts=settings.restarts if settings.compares_restarts or iterations == settings.iterations else 1,
    )


def raced(
    settings: GradientMatching,
    search: Search,
    sizes: Sequence[Size],
    labels: Sequence[Tensor | None],
    generators: Sequence[Generator],
    progress: Progress | None,
) -> list[Found]:
    """Each update's own weight of the prior: a heat with every weight, the whole search with the best.

    Where a heat would be as long as the whole search there is no final.

    Args:
        settings: With more than one weight.
        search: Of the updates.
        sizes: One for each update.
        labels: (batch,) for each update, None for those that cannot be searched.
        generators: One for each update.
        progress: Receives the share done.
    """
    weights, places = settings.weights, range(len(labels))
    heat = heat_iterations(settings.iterations)
    alone = heat == settings.iterations
    whole = len(weights) * heat + (0 if alone else settings.iterations)
    # All start at the same points: what differs is then the prior, and not luck.
    draws = Draws.of_each(generators, settings.restarts)
    ran: list[list[tuple[float, Reconstruction]]] = [[] for _ in places]
    for number, weight in enumerate(weights):
        told = _part(progress, number * heat / whole, heat / whole)
        own = heat_of(settings, weight)
        with share_of_time(number, whole / heat):
            heats = search(own, places, labels, _starts(draws, places, own), told)
        for place, found in enumerate(heats):
            if found is not None:
                ran[place].append((weight, found))
    if not alone:
        chosen = {place: best_fit(ran[place], sizes[place], settings)[0] for place in places if ran[place]}
        done = len(weights) * heat / whole
        groups = {weight: [p for p, own in chosen.items() if own == weight] for weight in sorted(set(chosen.values()))}
        for number, (weight, members) in enumerate(groups.items()):
            final = replace(settings, total_variation=weight, total_variations="")
            told = _part(progress, done + (1 - done) * number / len(groups), (1 - done) / len(groups))
            given = [labels[place] for place in members]
            starts = _starts(draws, members, final)
            with share_of_time(number, len(groups)):
                finals = search(final, members, given, starts, told)
            for place, found in zip(members, finals, strict=True):
                if found is not None:
                    ran[place].append((weight, found))
    return [_together(ran[place], sizes[place], settings, alone=alone) if ran[place] else None for place in places]


def _starts(draws: Draws, places: Sequence[int], settings: GradientMatching) -> Draws:
    """The first starts of some updates, from their beginning."""
    return draws.keep(places, [range(settings.restarts)] * len(places)).afresh()


def _part(progress: Progress | None, begin: float, length: float) -> Progress | None:
    if progress is None:
        return None
    report = progress
    return lambda done, best: report(begin + length * done, best)


def by_trial(
    settings: GradientMatching,
    search: Search,
    hypotheses: Sequence[Sequence[Tensor]],
    generators: Sequence[Generator],
    progress: Progress | None,
) -> list[Found]:
    """For updates that show no labels: a heat with each hypothesis, of which the one that matches best is kept.

    Args:
        settings: Of the search; its middle weight of the prior is taken.
        search: Of the updates.
        hypotheses: (batch,) labels that may be true, for each update; none where labels are known or too many may be.
        generators: One for each update.
        progress: Receives the share done.

    Returns:
        The best heat of each update, with its labels; None where there was no hypothesis.
    """
    most = max(map(len, hypotheses), default=0)
    if not most:
        return [None] * len(hypotheses)
    heat = heat_of(settings, settings.weights[len(settings.weights) // 2], most=_TRIAL)
    # For every update: what it draws later must not depend on the others' hypotheses.
    draws = Draws.of_each(generators, heat.restarts)
    best: list[Found] = [None] * len(hypotheses)
    for number in range(most):
        places = [place for place, own in enumerate(hypotheses) if number < len(own)]
        given = [hypotheses[place][number] for place in places]
        starts, told = _starts(draws, places, heat), share(progress, number, most)
        with share_of_time(number, most + 1):  # what comes after it takes longer than a heat
            tried = search(heat, places, given, starts, told)
        for place, found in zip(places, tried, strict=True):
            best[place] = _fitter(best[place], found, heat)
    return best


def _fitter(one: Found, other: Found, settings: GradientMatching) -> Found:
    """Of two results that differ in their labels the one that fits better, with the work of both."""
    if one is None or other is None:
        return one or other
    better = other if _residual(other, settings) < _residual(one, settings) else one
    return replace(better, seconds=one.seconds + other.seconds, iterations=one.iterations + other.iterations)


def best_fit(
    ran: Sequence[tuple[float, Reconstruction]], size: Size, settings: GradientMatching
) -> tuple[float, Reconstruction]:
    """The largest weight among the results that fit as well as the best.

    A weak prior lets the images follow noise, and a search that is not at its end yet, so that the smallest distance
    alone would favour the smallest weight. Of a residual that is noise, as many free numbers as there are pixels
    explain about their number over that of the equations: log residuals that differ by less are taken as equal.
    """
    least = min(_residual(found, settings) for _, found in ran)
    slack = min(_FACTOR, math.exp(min(1.0, size.unknowns / size.equations)))
    fits = [(weight, found) for weight, found in ran if _residual(found, settings) <= slack * least]
    return max(fits or ran, key=lambda one: (one[0], one[1].iterations))


def _residual(found: Found, settings: GradientMatching) -> float:
    """Share of the update's square that the images do not explain; infinite where nothing was measured."""
    if found is None or found.matching_loss is None or found.outcome is Outcome.DIVERGED:
        return math.inf
    loss = found.matching_loss
    return loss * (2 - loss) if settings.distance.startswith("cosine") and loss < 1 else loss


def _together(
    ran: Sequence[tuple[float, Reconstruction]], size: Size, settings: GradientMatching, *, alone: bool
) -> Reconstruction:
    """The best result, with the work of all; a heat is no start of its own, because it is short."""
    weight, best = best_fit(ran, size, settings)
    long = [found for _, found in ran] if alone else [ran[-1][1]]
    words = f"total variation weighs {weight:g}, the best of {settings.total_variations}"
    return replace(
        best,
        reason="; ".join(part for part in (best.reason, words) if part),
        seconds=sum(found.seconds for _, found in ran),
        iterations=sum(found.iterations for _, found in ran),
        starts=sum(found.starts for found in long),
    )
