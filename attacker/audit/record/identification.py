"""Whose image a reconstruction shows, counted: how often the true image is first. From records only."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple

from attacker.audit.record.schema import ImageResult, RankSummary
from attacker.audit.record.trials import trials, update_of
from attacker.metrics.intervals import exact_interval
from attacker.metrics.places import Place, chance_of_first

Measure = Literal["pixels", "features"]
MEASURES: Final[tuple[Measure, ...]] = ("pixels", "features")

FEW: Final = 5
"""Places that "among the first five" speaks of."""


class _Ranked(NamedTuple):
    """What one measure says of one image."""

    row: ImageResult
    place: Place | None
    of_class: int
    identified: bool


def rank_summaries(rows: Iterable[ImageResult], same: Mapping[str, str]) -> list[RankSummary]:
    """How well one attack's reconstructions name their images, by each measure that was taken; none without candidates.

    An image of which the attack gave no picture is not identified; it counts, and has no place.

    Args:
        rows: Results of one attack on one federation.
        same: As of `attacker.audit.record.trials.originals`.
    """
    compared = [row for row in rows if row.candidates is not None and row.outcome != "not_applicable"]
    summaries = []
    for measure in MEASURES:
        ranked = [_ranked(row, measure) for row in compared]
        if any(image.place is not None for image in ranked) or (ranked and measure == "pixels"):
            summaries.append(_summary(measure, ranked, same))
    return summaries


def _ranked(row: ImageResult, measure: Measure) -> _Ranked:
    rank, tied, identified = (
        (row.rank, row.rank_tied, row.identified)
        if measure == "pixels"
        else (row.feature_rank, row.feature_tied, row.feature_identified)
    )
    place = None
    if rank is not None and tied is not None:
        place = Place(closer=round(rank - 1 - tied / 2), tied=tied, others=(row.candidates or 1) - 1)
    return _Ranked(row, place, row.candidates_of_class or 1, bool(identified))


def _summary(measure: Measure, ranked: Sequence[_Ranked], same: Mapping[str, str]) -> RankSummary:
    places = [image.place for image in ranked if image.place is not None]
    first, few = (sum(place.within(most) for place in places) for most in (1, FEW))
    rows = [image.row for image in ranked]
    independent = trials(rows, same)
    return RankSummary(
        measure=measure,
        images=len(ranked),
        candidates=min(row.candidates or 1 for row in rows),
        first=first,
        first_interval=exact_interval(min(1.0, first / len(ranked)), independent),
        among_five=few,
        among_five_interval=exact_interval(min(1.0, few / len(ranked)), independent),
        median_rank=statistics.median(place.rank for place in places) if places else None,
        identified=sum(image.identified for image in ranked),
        expected=sum(1 / (row.candidates or 1) for row in rows),
        chance=_chance(ranked, same),
    )


def _chance(ranked: Sequence[_Ranked], same: Mapping[str, str]) -> float:
    """Of so many first places by pictures that say nothing; an image that is attacked again counts the first time."""
    seen: set[str] = set()
    first = 0
    updates: dict[tuple[int, str], tuple[int, int]] = {}
    for image in ranked:
        original = same.get(image.row.victim_id, image.row.victim_id)
        key = update_of(image.row)
        images, pictures = updates.get(key, (0, 0))
        new = original not in seen
        updates[key] = images + new, pictures + (image.place is not None)
        first += new and image.place is not None and image.place.alone
        seen.add(original)
    return chance_of_first(first, list(updates.values()), min(image.of_class for image in ranked))
