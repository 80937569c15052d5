"""One federation of an audit record, with everything that its flags and its verdict go by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from attacker.audit.confirmed import AGREES, confirmed, confirms
from attacker.audit.counting import counts
from attacker.audit.mends import MENDS, Mend
from attacker.audit.record import AttackSummary, AuditRecord, FederationSummary, ImageResult, PlannedAttack

__all__ = [
    "AGREES",
    "FederationView",
    "confirmed",
    "confirms",
    "counterpart",
    "is_defended",
    "knows",
    "lines_that_mend",
    "views",
]


def lines_that_mend(planned: PlannedAttack) -> list[Mend]:
    """What is not known and a line of the notes would tell, so that an attack could run."""
    return [MENDS[code] for code in planned.mends if code in MENDS and MENDS[code].line]


def is_defended(federation: FederationSummary) -> bool:
    """Whether there is, or may be, a defence."""
    return federation.defence != "none"


def counterpart(record: AuditRecord, federation: FederationSummary) -> FederationSummary | None:
    """The undefended federation to compare with, or None.

    That is the control that repeats its updates without the defence; else another federation of the same model, images
    and work of a client.
    """
    controls = (one for one in record.federations if one.control_of == federation.id)
    alike = (
        one
        for one in record.federations
        if one.defence == "none"
        and one.control_of is None
        and one.id != federation.id
        and _work(one) == _work(federation)
    )
    return next(controls, None) or next(alike, None)


def _work(one: FederationSummary) -> tuple[object, ...]:
    return one.model, one.dataset, one.shape, one.protocol, one.batch_size, one.local_steps, one.local_epochs


def knows(record: AuditRecord, federation: FederationSummary, spec: str) -> bool:
    """Whether an attack takes this federation's defence into account, or a part of it: whether it is adaptive there.

    One that the defence cannot touch, and that would do the same without it, is not: everybody could run it.
    """
    return is_defended(federation) and any(
        one.spec == spec and not one.oblivious and one.answers_to(federation.defence) for one in record.attacks
    )


def views(record: AuditRecord) -> list[FederationView]:
    """One view for each federation, in the record's order."""
    return [FederationView(record=record, federation=one) for one in record.federations]


@dataclass(frozen=True, kw_only=True)
class FederationView:
    """What a record says about one federation.

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
        found = counterpart(self.record, self.federation) if self.defended else None
        return None if found is None else FederationView(record=self.record, federation=found)

    @cached_property
    def summaries(self) -> list[AttackSummary]:
        """Success of each attack."""
        return [one for one in self.record.summaries if one.federation == self.federation.id]

    @cached_property
    def tried(self) -> list[AttackSummary]:
        """Of the attacks that gave a result."""
        return [one for one in self.summaries if one.images > one.failed]

    @cached_property
    def scored(self) -> list[AttackSummary]:
        """Of those whose results could be compared with the truth."""
        return [one for one in self.tried if one.successes is not None]

    @property
    def nothing_came_back(self) -> bool:
        """Whether similarity was measured, and no attack brought an image back."""
        return bool(self.scored) and not any(one.successes for one in self.scored)

    @cached_property
    def nearer(self) -> int:
        """Images that an attack brought back nearer to the truth than the average training image is."""
        return len(
            {
                row.victim_id
                for row in self.record.results
                if row.federation == self.federation.id and counts(row, self.record.success_threshold)
            }
        )

    @property
    def cannot_be_told(self) -> bool:
        """Whether the average training image alone counts as come back on every victim, and no attack did better."""
        alike = bool(self.scored) and all(one.baseline_successes == one.images for one in self.scored)
        return alike and not self.nearer

    def adaptive(self, spec: str) -> bool:
        """Whether an attack answers this federation's defence, or a part of it."""
        return knows(self.record, self.federation, spec)

    def of_role(self, *, adaptive: bool, among: Iterable[AttackSummary]) -> list[AttackSummary]:
        """The adaptive, or the plain ones, of some summaries."""
        return [one for one in among if self.adaptive(one.attack) == adaptive]

    def summary(self, spec: str) -> AttackSummary | None:
        """Success of one attack, if it gave a result that could be compared."""
        return next((one for one in self.scored if one.attack == spec), None)

    @cached_property
    def _rows(self) -> dict[str, list[ImageResult]]:
        found: dict[str, list[ImageResult]] = {}
        for row in self.record.results:
            if row.federation == self.federation.id and row.outcome != "not_applicable":
                found.setdefault(row.attack, []).append(row)
        return found

    @property
    def all_rows(self) -> list[ImageResult]:
        """What all attacks made of the images that they fit."""
        return [row for own in self._rows.values() for row in own]

    def rows(self, spec: str) -> Sequence[ImageResult]:
        """What an attack made of each image that it fits."""
        return self._rows.get(spec, ())

    def searches(self, spec: str) -> list[ImageResult]:
        """Of these rows, those of an attack that searches, or should have."""
        return [row for row in self.rows(spec) if row.starts or row.iterations or row.outcome == "iteration_limit"]

    @property
    def stopped(self) -> list[tuple[AttackSummary, AttackSummary]]:
        """Plain attacks that work without the defence and brought nothing back here: here, and on the control."""
        if self.control is None:
            return []
        pairs = ((one, self.control.summary(one.attack)) for one in self.of_role(adaptive=False, among=self.scored))
        return [(here, there) for here, there in pairs if there is not None and there.successes and not here.successes]
