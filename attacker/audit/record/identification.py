"""Counts of identified images: how often the true image is first. From records only."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple

from attacker.audit.record.schema import ImageResult, RankSummary, VictimImage
from attacker.audit.record.trials import originals, trials, update_of
from attacker.metrics.intervals import exact_interval
from attacker.metrics.places import FEWEST, Compared, Place, chance_of_first, identifies

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
    """Probability of this many first places by pictures that say nothing."""
    return chance_of_first(*_first_of(ranked, same))


def _first_of(ranked: Sequence[_Ranked], same: Mapping[str, str]) -> tuple[int, list[Compared]]:
    """Images that are first alone, and what was compared; an image that is attacked again counts the first time."""
    seen: set[str] = set()
    first = 0
    updates: dict[tuple[int, str], Compared] = {}
    for image in ranked:
        original = same.get(image.row.victim_id, image.row.victim_id)
        key = update_of(image.row)
        known = updates.get(key, Compared(0, 0, image.of_class))
        new = original not in seen
        updates[key] = Compared(
            known.images + new, known.pictures + (image.place is not None), min(known.candidates, image.of_class)
        )
        first += new and image.place is not None and image.place.alone
        seen.add(original)
    return first, list(updates.values())


def with_identified(rows: Sequence[ImageResult], victims: Iterable[VictimImage]) -> list[ImageResult]:
    """The results with what each attack identified, judged over all images that it was tried on.

    An image is identified that is first alone among `FEWEST` candidates of its class or more, where chance would not
    make as many images first (`attacker.metrics.places.identifies`).

    Args:
        rows: Results with places, of any attacks and federations.
        victims: The attacked images, of which some may be the same.
    """
    same = originals(victims)
    attacks: dict[tuple[str, str], list[ImageResult]] = {}
    for row in rows:
        if row.candidates is not None and row.outcome != "not_applicable":
            attacks.setdefault((row.federation, row.attack), []).append(row)
    judged: dict[tuple[str, str], dict[str, bool]] = {}
    for compared in attacks.values():
        for measure in MEASURES:
            for row, identified in _identified(compared, measure, same):
                fields = judged.setdefault((row.attack, row.victim_id), {})
                fields["identified" if measure == "pixels" else "feature_identified"] = identified
    return [row.model_copy(update=judged.get((row.attack, row.victim_id), {})) for row in rows]


def _identified(
    rows: Sequence[ImageResult], measure: Measure, same: Mapping[str, str]
) -> list[tuple[ImageResult, bool]]:
    """Results of the images with a place, by one measure."""
    ranked = [_ranked(row, measure) for row in rows]
    enough = [image for image in ranked if image.of_class >= FEWEST]
    sure = identifies(*_first_of(enough, same))
    return [
        (image.row, sure and image.place.alone and image.of_class >= FEWEST)
        for image in ranked
        if image.place is not None
    ]
