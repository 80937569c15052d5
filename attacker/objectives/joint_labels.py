"""Images and soft labels as one candidate, as DLG optimises them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from attacker.objectives.objective import GradientObjective
from attacker.optim.problem import Objective
from attacker.victim import Victim


@dataclass(frozen=True, kw_only=True)
class SoftlyLabelled(Victim):
    """A victim whose loss can take probabilities where the engine hands class indices through.

    Inside `probabilities` a label is the number of a row in a table of probabilities, one row for each image of each
    candidate, so that every image has its own soft label; outside of it a label is a class, as for every victim.
    """

    _table: list[Tensor] = field(default_factory=list, init=False, repr=False, compare=False)

    def training_loss(self, inputs: Tensor, labels: Tensor, batch_size: int | None = None) -> Tensor:
        """The clients' training loss; ``labels`` are (batch,) rows of the table inside `probabilities`."""
        return super().training_loss(inputs, self._table[-1][labels] if self._table else labels, batch_size)

    @contextmanager
    def probabilities(self, table: Tensor) -> Iterator[None]:
        """Read labels as rows of ``table``, (rows, classes), inside the block."""
        self._table.append(table)
        try:
            yield
        finally:
            self._table.pop()


@dataclass(frozen=True)
class JointCandidates:
    """Images and label logits side by side, (victims, restarts, batch * (pixels + classes)).

    Attributes:
        victim: The victim that all products are computed for.
        batch: Images of one candidate.
    """

    victim: SoftlyLabelled
    batch: int

    def join(self, images: Tensor, logits: Tensor) -> Tensor:
        """One row for each candidate from (v, r, batch, C, H, W) and (v, r, batch, classes)."""
        return torch.cat([images.flatten(2), logits.flatten(2)], dim=2)

    def split(self, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """Images and label logits of joined candidates, shaped as in `join`."""
        classes = self.victim.inputs.classes
        pixels = candidates.shape[2] - self.batch * classes
        images, logits = candidates[:, :, :pixels], candidates[:, :, pixels:]
        axes = (*candidates.shape[:2], self.batch)
        return images.reshape(*axes, *self.victim.inputs.shape), logits.reshape(*axes, classes)


@dataclass(frozen=True, kw_only=True)
class JointObjective(Objective):
    """The objective of joined candidates: each image's own soft label is optimised with it.

    Attributes:
        joint: Splits candidates.
        images: The objective of the images, for the victim that takes soft labels.
    """

    joint: JointCandidates
    images: GradientObjective

    def distances(self, x: Tensor) -> Tensor:
        """Distances of joined candidates, (victims, restarts)."""
        images, logits = self.joint.split(x)
        table = logits.softmax(dim=-1).flatten(0, 2)
        rows = torch.arange(len(table), device=table.device).reshape(logits.shape[:3])
        with self.joint.victim.probabilities(table):
            return self.images.distances_with(images, rows)

    def priors(self, x: Tensor) -> Tensor:
        """Priors on the images alone."""
        return self.images.priors(self.joint.split(x)[0])

    def keep(self, victims: Sequence[int], restarts: Sequence[Sequence[int]]) -> Self:
        """The same objective for some of the candidates."""
        return replace(self, images=self.images.keep(victims, restarts))
