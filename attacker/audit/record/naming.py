"""Attacks that name images: they put the true ones first among candidates, by more than chance. From records only.

With a picture that says nothing of it, a true image is first among N candidates with a probability of 1/N, whatever
the picture shows. So an attack *names* images where it identified some and chance would make as many first with a
probability below `LEVEL`, times the comparisons that were made: each attack on this federation by each measure is one
(Bonferroni), and two where images of small classes would hide the others, which are then counted apart as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attacker.audit.record.identification import rank_summaries
from attacker.audit.record.schema import AttackSummary, ImageResult, RankSummary
from attacker.audit.record.trials import originals, share_interval, trials, update_of
from attacker.audit.record.view import FederationView
from attacker.metrics.places import FEWEST, LEVEL, Compared, identifies


@dataclass(frozen=True, kw_only=True)
class LinedUp:
    """What the pictures of one attack say of whose images they are, by one measure.

    Attributes:
        summary: Summary of the attack.
        ranks: How often the true image is first.
        chance: Probability of as many first images by chance in any comparison on this federation, at most.
    """

    summary: AttackSummary
    ranks: RankSummary
    chance: float

    @property
    def beyond_chance(self) -> bool:
        """Whether more images are first than chance makes."""
        return self.chance < LEVEL

    @property
    def names(self) -> bool:
        """Whether it names images, each for itself."""
        return self.beyond_chance and self.ranks.identified > 0


@dataclass(frozen=True, kw_only=True)
class Identified:
    """What all attacks together identified: the worst case, as `Union` is of what they reconstructed.

    Attributes:
        victims: Images that at least one attack identified which names images.
        images: Images that had candidates.
        nameable: Images that could have been identified at all: the others have too few candidates.
        independent: Independent trials among them.
        candidates: Candidates of each image, the true one included; the fewest where they differ.
        differ: Whether they differ.
        lined_up: All comparisons, the surest first.
    """

    victims: frozenset[str]
    images: int
    nameable: int
    independent: int
    candidates: int
    differ: bool
    lined_up: tuple[LinedUp, ...]

    @property
    def count(self) -> int:
        """How many images are identified."""
        return len(self.victims)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the share, by independent trials."""
        return share_interval(self.count, self.images, self.independent)

    @property
    def naming(self) -> list[LinedUp]:
        """The comparisons that name images, the one that names most in front."""
        named = [one for one in self.lined_up if one.names]
        return sorted(named, key=lambda one: (-one.ranks.identified, one.chance, one.summary.attack))

    @property
    def surest(self) -> LinedUp:
        """The comparison that chance explains least."""
        return self.lined_up[0]

    @property
    def chance(self) -> float:
        """Probability, at most, that pictures which say nothing are first as often in any of the comparisons."""
        return self.surest.chance


def identified_in(view: FederationView) -> Identified | None:
    """Whose images the attacks on one federation show; None where no image had candidates, and in older records."""
    same = originals(victim for victim in view.record.victims if victim.federation == view.federation.id)
    looks = [
        (summary, ranks, chances)
        for summary in view.summaries
        for ranks in summary.identification
        if (chances := _chances(view.rows(summary.attack), ranks, same))
    ]
    if not looks:
        return None
    comparisons = sum(len(chances) for _, _, chances in looks)
    lined_up = sorted(
        (
            LinedUp(summary=summary, ranks=ranks, chance=min(1.0, comparisons * min(chances)))
            for summary, ranks, chances in looks
        ),
        key=lambda one: (one.chance, -one.ranks.identified, one.summary.attack, one.ranks.measure),
    )
    compared = [row for row in view.all_rows if (row.candidates or 1) > 1]
    victims = frozenset(
        row.victim_id for one in lined_up if one.names for row in view.rows(one.summary.attack) if _identified(row, one)
    )
    sizes = {row.candidates or 1 for row in compared}
    return Identified(
        victims=victims,
        images=len({row.victim_id for row in compared}),
        nameable=_nameable(compared),
        independent=trials(compared, same),
        candidates=min(sizes),
        differ=len(sizes) > 1,
        lined_up=tuple(lined_up),
    )


def _chances(rows: Sequence[ImageResult], ranks: RankSummary, same: Mapping[str, str]) -> list[float]:
    """Probability of as many first images by chance: of all, and of those with enough candidates, if only some have."""
    compared = [row for row in rows if (row.candidates or 1) > 1]
    if not compared:
        return []
    enough = [row for row in compared if (row.candidates_of_class or 1) >= FEWEST]
    if not enough or len(enough) == len(compared):
        return [ranks.chance]
    return [ranks.chance, *(one.chance for one in rank_summaries(enough, same) if one.measure == ranks.measure)]


def _identified(row: ImageResult, one: LinedUp) -> bool:
    return bool(row.identified if one.ranks.measure == "pixels" else row.feature_identified)


def _nameable(compared: Sequence[ImageResult]) -> int:
    """Images that would be identified if all were first: none where all of them together have too few candidates."""
    updates: dict[tuple[int, str], dict[str, int]] = {}
    for row in compared:
        if (row.candidates_of_class or 1) >= FEWEST:
            updates.setdefault(update_of(row), {})[row.victim_id] = row.candidates_of_class or 1
    count = sum(map(len, updates.values()))
    looks = [Compared(len(images), len(images), min(images.values())) for images in updates.values()]
    return count if identifies(count, looks) else 0
