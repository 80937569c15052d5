"""Race of settings that an attacker cannot know: short searches with each, then a long one with the best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from torch import Generator, Tensor

from attacker.attacks.base import Outcome, Progress, Reconstruction
from attacker.attacks.gradient_matching.memory import share
from attacker.attacks.gradient_matching.parts import RacedTotalVariation, Restarts, TotalVariation
from attacker.attacks.gradient_matching.search import Search
from attacker.optim.deadline import share_of_time
from attacker.optim.random_streams import Draws
from attacker.reasons import because, joined

_SHARE: Final = 4
_LEAST: Final = 300
_MOST: Final = 500
"""A heat has a fourth of the final's iterations, within these: shorter heats were measured to choose worse."""
_TRIAL: Final = 100
"""Iterations of a trial of labels, at most: wrong ones are far from matching."""
_FACTOR: Final = 1.5
"""However many the unknowns, a residual so many times the smallest is worse."""

Found = Reconstruction | None


class Searches(Protocol):
    """Gradient matching of some of the updates that are attacked together."""

    def __call__(
        self,
        settings: Search,
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


def heat_of(settings: Search, weight: float, *, most: int = _MOST) -> Search:
    """A short search with one weight of the prior and a limit of iterations.

    Only a heat that is no shorter has all restarts.
    """
    whole = settings.optimiser.iterations
    iterations = min(heat_iterations(whole), most)
    all_of_them = settings.compares_restarts or iterations == whole
    return replace(
        weighted(settings, weight),
        optimiser=settings.optimiser.shortened(iterations),
        restarts=settings.restarts if all_of_them else Restarts(),
    )


def weighted(settings: Search, weight: float) -> Search:
    """The same search with one weight of total variation."""
    others = [prior for prior in settings.priors if not isinstance(prior, TotalVariation | RacedTotalVariation)]
    return replace(settings, priors=(TotalVariation(weight), *others) if weight else others)


def evaluations(settings: Search) -> int:
    """Evaluations of candidates for one update, those of a race included."""
    whole = settings.optimiser.iterations * settings.restarts.count
    if settings.raced is None:
        return whole
    heats = [heat_of(settings, weight) for weight in settings.raced.weights]
    short = sum(heat.optimiser.iterations * heat.restarts.count for heat in heats)
    return short if heats[0].optimiser.iterations == settings.optimiser.iterations else short + whole


def raced(
    settings: Search,
    prior: RacedTotalVariation,
    search: Searches,
    sizes: Sequence[Size],
    labels: Sequence[Tensor | None],
    generators: Sequence[Generator],
    progress: Progress | None,
) -> list[Found]:
    """Each update's own weight of the prior: a heat with every weight, the whole search with the best.

    Where a heat would be as long as the whole search there is no final.

    Args:
        settings: Settings of the search.
        prior: Its prior, with the weights.
        search: Search of the updates.
        sizes: One for each update.
        labels: (batch,) for each update, None for those that cannot be searched.
        generators: One for each update.
        progress: Receives the share done.
    """
    weights, places = sorted(prior.weights), range(len(labels))
    iterations = settings.optimiser.iterations
    heat = heat_iterations(iterations)
    alone = heat == iterations
    whole = len(weights) * heat + (0 if alone else iterations)
    # All start at the same points: what differs is then the prior, and not luck.
    draws = Draws.of_each(generators, settings.restarts.count)
    ran: list[list[tuple[float, Reconstruction]]] = [[] for _ in places]
    for number, weight in enumerate(weights):
        told = _part(progress, number * heat / whole, heat / whole)
        short_search = heat_of(settings, weight)
        with share_of_time(number, whole / heat):
            heats = search(short_search, places, labels, _starts(draws, places, short_search), told)
        for place, result in enumerate(heats):
            if result is not None:
                ran[place].append((weight, result))
    if not alone:
        chosen = {place: best_fit(ran[place], sizes[place], settings)[0] for place in places if ran[place]}
        done = len(weights) * heat / whole
        groups = {
            weight: [p for p, best in chosen.items() if best == weight] for weight in sorted(set(chosen.values()))
        }
        for number, (weight, members) in enumerate(groups.items()):
            final = weighted(settings, weight)
            told = _part(progress, done + (1 - done) * number / len(groups), (1 - done) / len(groups))
            given = [labels[place] for place in members]
            starts = _starts(draws, members, final)
            with share_of_time(number, len(groups)):
                finals = search(final, members, given, starts, told)
            for place, result in zip(members, finals, strict=True):
                if result is not None:
                    ran[place].append((weight, result))
    return [
        _together(ran[place], sizes[place], settings, prior, alone=alone) if ran[place] else None for place in places
    ]


def _starts(draws: Draws, places: Sequence[int], settings: Search) -> Draws:
    """The first starts of some updates, from their beginning."""
    return draws.keep(places, [range(settings.restarts.count)] * len(places)).afresh()


def _part(progress: Progress | None, begin: float, length: float) -> Progress | None:
    if progress is None:
        return None
    report = progress
    return lambda done, best: report(begin + length * done, best)


def by_trial(
    settings: Search,
    search: Searches,
    hypotheses: Sequence[Sequence[Tensor]],
    generators: Sequence[Generator],
    progress: Progress | None,
) -> list[Found]:
    """For updates that show no labels: a heat with each hypothesis, of which the one that matches best is kept.

    Args:
        settings: Settings of the search; its middle weight of the prior is taken.
        search: Search of the updates.
        hypotheses: (batch,) labels that may be true, for each update; none where labels are known or too many may be.
        generators: One for each update.
        progress: Receives the share done.

    Returns:
        The best heat of each update, with its labels; None where there was no hypothesis.
    """
    most = max(map(len, hypotheses), default=0)
    if not most:
        return [None] * len(hypotheses)
    weight = next(
        (prior.weight for prior in settings.priors if isinstance(prior, TotalVariation | RacedTotalVariation)), 0.0
    )
    heat = heat_of(settings, weight, most=_TRIAL)
    # For every update: what it draws later must not depend on the others' hypotheses.
    draws = Draws.of_each(generators, heat.restarts.count)
    best: list[Found] = [None] * len(hypotheses)
    for number in range(most):
        places = [place for place, guesses in enumerate(hypotheses) if number < len(guesses)]
        given = [hypotheses[place][number] for place in places]
        starts, told = _starts(draws, places, heat), share(progress, number, most)
        with share_of_time(number, most + 1):  # what comes after it takes longer than a heat
            tried = search(heat, places, given, starts, told)
        for place, result in zip(places, tried, strict=True):
            best[place] = _fitter(best[place], result, heat)
    return best


def _fitter(earlier: Found, other: Found, settings: Search) -> Found:
    """The better fit of two results that differ in their labels, with the work of both."""
    if earlier is None or other is None:
        return earlier or other
    better = other if _residual(other, settings) < _residual(earlier, settings) else earlier
    return replace(better, seconds=earlier.seconds + other.seconds, iterations=earlier.iterations + other.iterations)


def best_fit(ran: Sequence[tuple[float, Reconstruction]], size: Size, settings: Search) -> tuple[float, Reconstruction]:
    """The largest weight among the results that fit as well as the best.

    A weak prior lets the images follow noise, and a search that is not at its end yet, so that the smallest distance
    alone would favour the smallest weight. Of a residual that is noise, as many free numbers as there are pixels
    explain about their number over that of the equations: log residuals that differ by less are taken as equal.
    """
    least = min(_residual(result, settings) for _, result in ran)
    slack = min(_FACTOR, math.exp(min(1.0, size.unknowns / size.equations)))
    fits = [(weight, result) for weight, result in ran if _residual(result, settings) <= slack * least]
    return max(fits or ran, key=lambda fit: (fit[0], fit[1].iterations))


def _residual(result: Found, settings: Search) -> float:
    """Share of the update's square that the images do not explain; infinite where nothing was measured."""
    if result is None or result.matching_loss is None or result.outcome is Outcome.DIVERGED:
        return math.inf
    return settings.distance.residual(result.matching_loss)


def _together(
    ran: Sequence[tuple[float, Reconstruction]],
    size: Size,
    settings: Search,
    prior: RacedTotalVariation,
    *,
    alone: bool,
) -> Reconstruction:
    """The best result, with the work of all; a heat is no start of its own, because it is short."""
    weight, best = best_fit(ran, size, settings)
    long = [result for _, result in ran] if alone else [ran[-1][1]]
    words = because("prior-chosen", weight=weight, weights=prior.text)
    return replace(
        best,
        reason=joined([best.reason, words]),
        seconds=sum(result.seconds for _, result in ran),
        iterations=sum(result.iterations for _, result in ran),
        starts=sum(result.starts for result in long),
    )
