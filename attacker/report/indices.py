"""Leakage indices on the page: how much of an image one update determines, in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attacker import wording
from attacker.audit.record.schema import AuditRecord, LeakageSummary
from attacker.report.leakage_words import exactly_determined, noise_without_prior, rmse_size, seen_at
from attacker.report.panels import Panel


@dataclass(frozen=True, kw_only=True)
class Determined:
    """Leakage indices of one federation.

    Attributes:
        title: Title of the federation, for people.
        found: The indices.
    """

    title: str
    found: LeakageSummary

    @property
    def computed(self) -> bool:
        """Whether there is a rank."""
        return self.found.jacobian_rank is not None

    @property
    def headline(self) -> str:
        """What is determined, in one sentence."""
        rank, unknowns = self.found.jacobian_rank, self.found.unknowns
        if rank is None:
            return f"Not computed: {self.found.reason.rstrip('.') or 'the record does not say why'}."
        if rank == unknowns:
            return f"One update of one image determines all {wording.count(unknowns)} numbers of the image."
        lost = unknowns - rank
        rest = f"{wording.count(lost)} leave no trace in it and" if lost > 1 else "one leaves no trace in it and"
        return (
            f"One update of one image determines {wording.count(rank)} of {wording.count(unknowns)} numbers of the "
            f"image ({_share(rank / unknowns)}); the other {rest} can only be guessed."
        )

    @property
    def formulas(self) -> list[str]:
        """What formulas take from one update, a sentence for each; empty where none fits the model."""
        return exactly_determined(self.found.positions, self.found.spans)

    @property
    def noise(self) -> str:
        """What noise on the update does to attackers without and with a prior; empty where that is not known."""
        unit = self.found.unit_rmse
        return noise_without_prior(unit, self.found.noise_attack) if self.computed and unit else ""

    @staticmethod
    def size(rmse: float) -> str:
        """An error that linear theory predicts; above 1 it means that nothing is determined, not by how much."""
        return rmse_size(rmse)

    @staticmethod
    def seen(rmse: float) -> str:
        """What is to be seen of an image with such an error."""
        return seen_at(rmse)


def determined(record: AuditRecord, panels: Sequence[Panel]) -> list[Determined]:
    """The indices of a record, in the order of the page."""
    by_id = {summary.federation: summary for summary in record.leakage}
    return [
        Determined(title=panel.title, found=by_id[panel.federation.id])
        for panel in panels
        if panel.federation.id in by_id
    ]


def _share(share: float) -> str:
    """Whole per cent, never rounded up to the whole."""
    return wording.percent(min(share, 0.994))
