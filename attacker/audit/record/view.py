"""One federation of an audit record, with everything that its flags and its verdict go by."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from attacker.audit.record.confirmed import AGREES, confirmed, confirms, is_formula
from attacker.audit.record.counting import best_guess, comparable, counts, near_miss, strength
from attacker.audit.record.mends import MENDS, Mend
from attacker.audit.record.schema import AttackSummary, AuditRecord, FederationSummary, ImageResult, PlannedAttack
from attacker.audit.record.trials import originals, share_interval, trials, update_of
from attacker.metrics.intervals import difference_interval, exact_interval

__all__ = [
    "AGREES",
    "FederationView",
    "Lead",
    "Union",
    "confirmed",
    "confirms",
    "counterpart",
    "is_defended",
    "is_formula",
    "knows",
    "lines_that_mend",
    "views",
]


WORKS: Final = 0.5
"""Share of images that an attack must reconstruct without the defence, so that failing with it says something."""

LEAD: Final = 0.1
"""Mean SSIM beyond the best guess from which results that do not count as reconstructed are a leak in part."""


def lines_that_mend(planned: PlannedAttack) -> list[Mend]:
    """What is not known and a line of the notes would tell, so that an attack could run."""
    return [MENDS[code] for code in planned.mends if code in MENDS and MENDS[code].line]


def is_defended(federation: FederationSummary) -> bool:
    """Whether there is, or may be, a defence."""
    return federation.defence != "none"


def counterpart(record: AuditRecord, federation: FederationSummary) -> FederationSummary | None:
    """The undefended federation to compare with, or None.

    That is the control that repeats its updates without the defence; else another federation of the same model, images
    and work of a client. Of several the first by identifier, whatever their order in the record.
    """
    others = sorted((other for other in record.federations if other.id != federation.id), key=lambda other: other.id)
    controls = (other for other in others if other.control_of == federation.id)
    alike = (
        other
        for other in others
        if other.defence == "none" and other.control_of is None and _work(other) == _work(federation)
    )
    return next(controls, None) or next(alike, None)


def _work(federation: FederationSummary) -> tuple[object, ...]:
    return (
        federation.model,
        federation.dataset,
        federation.shape,
        federation.protocol,
        federation.batch_size,
        federation.local_steps,
        federation.local_epochs,
    )


def knows(record: AuditRecord, federation: FederationSummary, spec: str) -> bool:
    """Whether an attack takes this federation's defence into account, or a part of it: whether it is adaptive there.

    One that the defence cannot touch, and that would do the same without it, is not: everybody could run it.
    """
    return is_defended(federation) and any(
        attack.spec == spec and not attack.oblivious and attack.answers_to(federation.defence)
        for attack in record.attacks
    )


def views(record: AuditRecord) -> list[FederationView]:
    """One view for each federation, in the record's order."""
    return [FederationView(record=record, federation=federation) for federation in record.federations]


@dataclass(frozen=True, kw_only=True)
class Union:
    """What all attacks together reconstructed: the worst case, which verdict, gate, comparison and table give.

    Attributes:
        back: Images that at least one attack reconstructed.
        images: Images with a known truth that attacks were asked to reconstruct.
        attacked: Images that at least one attack fits.
        independent: Independent trials among them.
    """

    back: int
    images: int
    attacked: int
    independent: int

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the share, by independent trials; from 0 to 1 where there is no image."""
        return share_interval(self.back, self.images, self.independent) if self.images else (0.0, 1.0)

    @property
    def success_rate(self) -> float:
        """Share of the images that were reconstructed."""
        return self.back / self.images if self.images else 0.0


@dataclass(frozen=True, kw_only=True)
class Lead:
    """How far the results of one attack are beyond every guess, although too few or none of them count.

    Attributes:
        summary: Summary of the attack.
        ahead: Images whose result is nearer to the truth than every guess.
        images: Images compared.
        gain: Mean SSIM beyond the best guess.
        ssim: Mean SSIM.
    """

    summary: AttackSummary
    ahead: int
    images: int
    gain: float
    ssim: float


@dataclass(frozen=True, kw_only=True)
class FederationView:
    """What a record says about one federation. Nothing here depends on the order of attacks, images or federations.

    Attributes:
        record: The whole record.
        federation: One of its federations.
    """

    record: AuditRecord
    federation: FederationSummary

    @property
    def defended(self) -> bool:
        """Whether there is, or may be, a defence."""
        return is_defended(self.federation)

    @cached_property
    def control(self) -> FederationView | None:
        """The undefended federation to compare with, seen alike; None without a defence or without one to compare."""
        undefended = counterpart(self.record, self.federation) if self.defended else None
        return None if undefended is None else FederationView(record=self.record, federation=undefended)

    @cached_property
    def summaries(self) -> list[AttackSummary]:
        """Success of each attack, counted anew from its results, the most successful first."""
        counted = [
            self._counted(summary) for summary in self.record.summaries if summary.federation == self.federation.id
        ]
        counted.sort(key=lambda summary: summary.attack)
        return sorted(
            counted, key=lambda summary: strength(summary.successes, summary.images, summary.mean_ssim), reverse=True
        )

    def _counted(self, summary: AttackSummary) -> AttackSummary:
        """The summary by today's rule; older versions counted what every guess reaches, and images as trials."""
        rows = [row for row in self.rows(summary.attack) if comparable(row)]
        if not rows or summary.successes is None:
            return summary
        back = sum(counts(row, self.record.success_threshold) for row in rows)
        return summary.model_copy(
            update={
                "images": len(rows),
                "failed": sum(not _gave(row) for row in rows),
                "successes": back,
                "success_rate": back / len(rows),
                "interval": share_interval(back, len(rows), trials(rows, self._same)),
            }
        )

    @cached_property
    def _same(self) -> dict[str, str]:
        return originals(victim for victim in self.record.victims if victim.federation == self.federation.id)

    @cached_property
    def tried(self) -> list[AttackSummary]:
        """Summaries of the attacks that gave a result."""
        return [summary for summary in self.summaries if summary.images > summary.failed]

    @cached_property
    def scored(self) -> list[AttackSummary]:
        """Summaries of the attacks whose results could be compared with the truth."""
        return [summary for summary in self.tried if summary.successes is not None]

    @property
    def nothing_reconstructed(self) -> bool:
        """Whether similarity was measured, and no attack reconstructed an image."""
        return bool(self.scored) and not any(summary.successes for summary in self.scored)

    @cached_property
    def guessed(self) -> int:
        """Images on which the best guess without the update alone reaches the similarity from which images count."""
        threshold = self.record.success_threshold
        victims = {row.victim_id for row in self.compared if (best_guess(row) or 0.0) >= threshold}
        return (
            len(victims)
            if self.compared
            else max((summary.baseline_successes or 0 for summary in self.scored), default=0)
        )

    @property
    def cannot_be_told(self) -> bool:
        """Whether a guess alone reaches what counts on every image, and no attack did better."""
        images = len({row.victim_id for row in self.compared}) or max(
            (summary.images for summary in self.scored), default=0
        )
        return bool(self.scored) and self.guessed == images and not self.union.back

    def adaptive(self, spec: str) -> bool:
        """Whether an attack answers this federation's defence, or a part of it."""
        return knows(self.record, self.federation, spec)

    def of_role(self, *, adaptive: bool, among: Iterable[AttackSummary]) -> list[AttackSummary]:
        """The adaptive, or the plain ones, of some summaries."""
        return [summary for summary in among if self.adaptive(summary.attack) == adaptive]

    @cached_property
    def whole(self) -> list[AttackSummary]:
        """Compared attacks that know every part of the defence, each by itself."""
        described = {attack.spec for attack in self.record.attacks if attack.answers_whole(self.federation.defence)}
        return [summary for summary in self.of_role(adaptive=True, among=self.scored) if summary.attack in described]

    def summary(self, spec: str) -> AttackSummary | None:
        """Success of one attack, if it gave a result that could be compared."""
        return next((summary for summary in self.scored if summary.attack == spec), None)

    @cached_property
    def _rows(self) -> dict[str, list[ImageResult]]:
        by_attack: dict[str, list[ImageResult]] = {}
        for row in sorted(self.record.results, key=lambda result: (result.attack, result.victim_id)):
            if row.federation == self.federation.id and row.outcome != "not_applicable":
                by_attack.setdefault(row.attack, []).append(row)
        return by_attack

    @property
    def all_rows(self) -> list[ImageResult]:
        """What all attacks made of the images that they fit."""
        return [row for rows in self._rows.values() for row in rows]

    @cached_property
    def compared(self) -> list[ImageResult]:
        """Rows that could be compared with the truth."""
        return [row for row in self.all_rows if comparable(row)]

    def rows(self, spec: str) -> Sequence[ImageResult]:
        """What an attack made of each image that it fits."""
        return self._rows.get(spec, ())

    def searches(self, spec: str) -> list[ImageResult]:
        """Rows of an attack that searches, or should have; a formula has no start."""
        return [row for row in self.rows(spec) if row.starts or row.iterations or row.starting_loss is not None]

    def independent(self, spec: str) -> int:
        """Independent trials among the images on which an attack gave a result."""
        rows = [row for row in self.rows(spec) if _gave(row)]
        if rows:
            return trials(rows, self._same)
        summary = self.summary(spec)  # a record without results tells no update from another
        return 0 if summary is None else summary.images - summary.failed

    @cached_property
    def attacked(self) -> tuple[int, int]:
        """Updates and clients whose images were compared with the truth."""
        return len({update_of(row) for row in self.compared}), len({row.node for row in self.compared})

    def back(self, *, adaptive: bool | None = None) -> set[str]:
        """Victims that at least one attack reconstructed; only by adaptive ones, or only by plain ones, if so asked."""
        threshold = self.record.success_threshold
        rows = (row for row in self.compared if adaptive is None or self.adaptive(row.attack) == adaptive)
        return {row.victim_id for row in rows if counts(row, threshold)}

    @cached_property
    def settled(self) -> bool:
        """Whether formulas alone reconstructed every image: how well searches did says nothing then."""
        threshold = self.record.success_threshold
        rows = (row for row in self.compared if is_formula(row.method or row.attack))
        return bool(self.union.images) and len({row.victim_id for row in rows if counts(row, threshold)}) == (
            self.union.images
        )

    @cached_property
    def union(self) -> Union:
        """What all attacks together reconstructed."""
        asked = [
            row for row in self.record.results if row.federation == self.federation.id and row.baseline_ssim is not None
        ]
        told = [
            summary for summary in self.scored if not self.rows(summary.attack)
        ]  # by a record that has no results of it
        images = max([len({row.victim_id for row in asked}), *(summary.images for summary in told)])
        return Union(
            back=max([len(self.back()), *(summary.successes or 0 for summary in told)]),
            images=images,
            attacked=max([len({row.victim_id for row in self.compared}), *(summary.images for summary in told)]),
            independent=trials(asked, self._same) or images,
        )

    @cached_property
    def out_of_reach(self) -> int:
        """Images with a known truth that no attack was tried on: none fits, or there was no time for one."""
        known = {
            victim.id
            for victim in self.record.victims
            if victim.federation == self.federation.id and victim.label is not None
        }
        asked = {
            row.victim_id
            for row in self.record.results
            if row.federation == self.federation.id and row.baseline_ssim is not None
        }
        return len((known | asked) - {row.victim_id for row in self.compared})

    @property
    def together(self) -> Union | None:
        """What all attacks together reconstructed, where there are several to put together."""
        return self.union if len(self.scored) > 1 else None

    @cached_property
    def near_misses(self) -> list[ImageResult]:
        """The best result of each image that no attack reconstructed and at least one nearly did, the nearest first."""
        threshold, back = self.record.success_threshold, self.back()
        best: dict[str, ImageResult] = {}
        for row in self.compared:
            if near_miss(row, threshold) and row.victim_id not in back:
                kept = best.setdefault(row.victim_id, row)
                if (row.ssim or 0.0) > (kept.ssim or 0.0):
                    best[row.victim_id] = row
        return sorted(best.values(), key=lambda row: (-(row.ssim or 0.0), row.victim_id))

    @cached_property
    def lead(self) -> Lead | None:
        """The attack that is furthest beyond every guess, where that is no chance and no trifle; None otherwise.

        No chance: on more than half of the images, by 99 % confidence and by independent trials. No trifle: by
        `LEAD` on average. Only where the best of several guesses is known; the mean image alone is easily beaten.
        """
        leads = [lead for summary in self.scored if (lead := self._lead(summary)) is not None]
        return max(leads, key=lambda candidate: (candidate.gain, candidate.summary.attack), default=None)

    def _lead(self, summary: AttackSummary) -> Lead | None:
        rows = [row for row in self.rows(summary.attack) if comparable(row) and row.guess_ssim is not None]
        gains = [(-1.0 if row.ssim is None else row.ssim) - (best_guess(row) or 0.0) for row in rows]
        if not rows:
            return None
        ahead, gain = sum(value > 0 for value in gains), statistics.fmean(gains)
        sure = exact_interval(ahead / len(rows), trials(rows, self._same), confidence=0.99)[0] > 0.5
        similar = statistics.fmean(row.ssim or 0.0 for row in rows)
        lead = Lead(summary=summary, ahead=ahead, images=len(rows), gain=gain, ssim=similar)
        return lead if sure and gain >= LEAD else None

    @cached_property
    def stopped(self) -> list[tuple[AttackSummary, AttackSummary]]:
        """Plain attacks that reconstruct images from the control and none here: here, and there; the surest first."""
        if self.control is None:
            return []
        pairs = (
            (summary, self.control.summary(summary.attack))
            for summary in self.of_role(adaptive=False, among=self.scored)
        )
        stopped_pairs = [
            (here, there) for here, there in pairs if there is not None and there.successes and not here.successes
        ]
        return sorted(stopped_pairs, key=lambda pair: (-(pair[1].success_rate or 0.0), -pair[1].images, pair[1].attack))

    def works_without(self, spec: str) -> bool:
        """Whether an attack reconstructs at least half of its images from the control."""
        there = None if self.control is None else self.control.summary(spec)
        return there is not None and (there.success_rate or 0.0) >= WORKS

    @cached_property
    def convincing(self) -> list[tuple[AttackSummary, AttackSummary]]:
        """Stopped attacks that work on the control, by more than chance better than here."""
        return [
            (here, there)
            for here, there in self.stopped
            if self.works_without(there.attack) and self._no_chance(here, there)
        ]

    def _no_chance(self, here: AttackSummary, there: AttackSummary) -> bool:
        assert self.control is not None
        independent = self.control.independent(there.attack), self.independent(here.attack)
        if not all(independent):
            return False
        return difference_interval(((there.success_rate or 0.0) * independent[0], 0), independent)[0] > 0


def _gave(row: ImageResult) -> bool:
    """Whether the attack came to an end on this image."""
    return row.outcome not in ("failed", "diverged")
