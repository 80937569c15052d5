"""Accuracy lost to a family's noise: federations from several seeds, beside undefended ones from the same."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from attacker import wording
from attacker.experiments.cells import Cell, FederationRun, Made, Setup
from attacker.experiments.defence_search.families import Family
from attacker.experiments.defence_search.prefetch import Ahead, Piece
from attacker.experiments.image_sets import images
from attacker.experiments.precode.experiment import Experiment

TOLERANCE = 0.01
"""Accuracy that may be lost, on the mean of the seeds."""

HOPELESS = 0.03
"""A first seed that loses more is not tried again from others."""

LEARNT = 0.05
"""Above the most frequent class: an undefended model below that has learnt nothing to compare by."""


@dataclass(frozen=True, kw_only=True)
class Lost:
    """Accuracy with and without a defence under one protocol, seed by seed.

    Attributes:
        defended: Accuracy after the last round; None where a federation did not finish.
        undefended: Accuracy without the defence, of the same seeds, model, batch and steps.
    """

    defended: tuple[float | None, ...]
    undefended: tuple[float | None, ...]

    @property
    def each(self) -> list[float]:
        """What each seed lost; all that the undefended model had where the defended one did not finish."""
        pairs = zip(self.defended, self.undefended, strict=True)
        return [(without or 0.0) - (accuracy or 0.0) for accuracy, without in pairs]

    @property
    def mean(self) -> float:
        """Over the seeds; negative where the defended model is the better one."""
        return statistics.fmean(self.each)

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds; None of a single one."""
        return statistics.stdev(self.each) if len(self.each) > 1 else None

    @property
    def kept(self) -> bool:
        """Whether at most the tolerance is lost; a hundredth of a point is rounding."""
        return self.mean <= TOLERANCE + 1e-4


@dataclass(frozen=True, kw_only=True)
class Utility:
    """Accuracy of families.

    Attributes:
        experiment: The search's; its scale says how large the federations are.
        ahead: Makes the cells.
    """

    experiment: Experiment
    ahead: Ahead

    def lost(self, family: Family, defence: str, protocol: str) -> Lost:
        """What the defence costs; the first seed alone where that is hopeless.

        Args:
            family: Says model, batch and steps.
            defence: Spec.
            protocol: Under which.
        """
        seeds = range(self.experiment.scale.search_seeds)
        first = self._runs(family, defence, protocol, seeds[:1])
        if first.mean > HOPELESS:
            return first
        return self._runs(family, defence, protocol, seeds)

    def why_not(self, family: Family, protocol: str) -> str:
        """Why the undefended model is no comparison: it learns nothing. Empty if it does."""
        found = self._runs(family, "none", protocol, range(self.experiment.scale.search_seeds)).undefended
        loaded = images(self.experiment.data[0], self.experiment.data_root)
        blind = int(loaded.test.labels.bincount().max()) / len(loaded.test)
        reached = [accuracy for accuracy in found if accuracy is not None]
        if len(reached) == len(found) and statistics.fmean(reached) >= blind + LEARNT:
            return ""
        said = f"accuracy {wording.percent(statistics.fmean(reached))}" if len(reached) == len(found) else "it diverges"
        return (
            f"the undefended model does not learn under {protocol} from {self.experiment.scale.search_rounds} batches "
            f"of {family.batch_size} images a client: {said}, the most frequent class {wording.percent(blind)}"
        )

    def _runs(self, family: Family, defence: str, protocol: str, seeds: Sequence[int]) -> Lost:
        with closing(self.ahead.results(self._pieces(family, defence, protocol, seeds))) as results:
            made = [_final(run) for _, run in results]
        return Lost(defended=tuple(made[1::2]), undefended=tuple(made[::2]))

    def _pieces(self, family: Family, defence: str, protocol: str, seeds: Sequence[int]) -> Iterator[Piece]:
        for seed in seeds:
            experiment = replace(self.experiment, seed=self.experiment.seed + seed)
            for spec in ("none", defence):
                setup = Setup(data=experiment.data[0], model=family.model, defence=spec)
                yield experiment, Cell(
                    kind="federation", setup=setup, protocol=protocol, batch_size=family.batch_size,
                    local_steps=family.local_steps if protocol == "fedavg" else 0, runtime="process",
                )  # fmt: skip


def _final(run: Made) -> float | None:
    """Accuracy after the last round; None when the federation did not finish."""
    assert isinstance(run, FederationRun)
    return run.curve[-1].accuracy if run.completed else None
