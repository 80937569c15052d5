"""Disclosure behind a family's noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Literal

from attacker import wording
from attacker.attacks.registry import attack_title
from attacker.experiments.attack_sets import every_attack_on, is_quick, patient_attacks_on
from attacker.experiments.cells import AttackedVictims, Cell, Setup, VictimScore
from attacker.experiments.defence_search.families import Family
from attacker.experiments.defence_search.prefetch import Ahead, Piece
from attacker.experiments.precode.experiment import Experiment
from attacker.experiments.precode.summarise import score

PROTOCOLS = ("fedsgd", "fedavg")

Which = Literal["quick", "searches", "patient"]
"""Attacks: formulas, all others at the scale's budget, or those that search, with more of everything."""

Part = Literal["validation", "judged"]


@dataclass(frozen=True, kw_only=True)
class Disclosed:
    """What the best of some attacks reconstructed, as far as they went.

    Attributes:
        images: Images that one attack reconstructed under one protocol, or a lower bound of them; None if no attack
            fits.
        victims: Victims of that attack; the fewest of any where no attack reconstructed an image.
        updates: That these are of, and so independent trials: images of one update stand or fall together.
        attack: Spec of that attack, or of what came closest.
        reason: A sentence about what was reconstructed; empty when nothing was.
        ssim: The largest on any image.
    """

    images: int | None = None
    victims: int = 0
    updates: int = 0
    attack: str = ""
    reason: str = ""
    ssim: float | None = None

    @property
    def holds(self) -> bool:
        """Whether attacks fit, and none reconstructed anything."""
        return self.images == 0

    def joined(self, other: Disclosed) -> Disclosed:
        """What both reconstructed: the larger number, and what came closest."""
        closest = max((self, other), key=lambda found: -2.0 if found.ssim is None else found.ssim)
        if self.images is None or other.images is None:
            known = other if self.images is None else self
            return replace(known, ssim=closest.ssim, attack=closest.attack or known.attack)
        if self.images or other.images:
            return replace(self if self.images >= other.images else other, ssim=closest.ssim)
        victims, updates = min(self.victims, other.victims), min(self.updates, other.updates)
        return replace(self, victims=victims, updates=updates, ssim=closest.ssim, attack=closest.attack or self.attack)


class Attacks:
    """Attacks on what a family's clients send.

    Args:
        experiment: The search's; its scale says how many victims and iterations.
        ahead: Makes the cells.
    """

    def __init__(self, experiment: Experiment, ahead: Ahead) -> None:
        self._experiment = experiment
        self._ahead = ahead
        self.seconds: dict[Cell, float] = {}

    def on(
        self,
        family: Family,
        defences: dict[str, str],
        *,
        part: Part,
        which: Which,
        epochs: Sequence[int] = (0,),
    ) -> Disclosed:
        """Images reconstructed; after the first attack that reconstructs one, no other is tried, except formulas.

        Args:
            family: Family of what is attacked.
            defences: By protocol.
            part: Whether the search may go by these images.
            which: Attacks.
            epochs: Epochs of the central training whose weights are attacked; 0 for none.
        """
        found = Disclosed()
        pieces = self._pieces(family, defences, part, which, epochs)
        with closing(self._ahead.results(pieces)) as results:
            for cell, run in results:
                assert isinstance(run, AttackedVictims)
                self.seconds[cell] = run.seconds
                found = found.joined(_disclosed(cell, run.victims, patient=which == "patient"))
                if found.images and which != "quick":
                    break
        return found

    def _pieces(
        self, family: Family, defences: dict[str, str], part: Part, which: Which, epochs: Sequence[int]
    ) -> Iterator[Piece]:
        for epoch in epochs:
            experiment = self._sized(part, which, epoch)
            for protocol, defence in defences.items():
                setup = Setup(data=experiment.data[0], model=family.model, defence=defence)
                if epoch:
                    self._ahead.result((experiment, Cell(kind="training", setup=setup)))
                for spec in self._specs(defence, which):
                    yield experiment, Cell(
                        kind="attack", setup=setup, protocol=protocol, batch_size=family.batch_size,
                        local_steps=family.local_steps if protocol == "fedavg" else 0, epoch=epoch, attacks=(spec,),
                        part=part,
                    )  # fmt: skip

    def _sized(self, part: Part, which: Which, epoch: int) -> Experiment:
        """Formulas have all judged images; of what takes long, patient searches and trained models have the first."""
        scale = self._experiment.scale
        judged = scale.judged if which == "quick" or (which == "searches" and not epoch) else scale.patient
        victims = scale.search_victims if part == "validation" else judged
        return replace(self._experiment, scale=replace(scale, victims=victims, epochs=max(scale.attacked)))

    def _specs(self, defence: str, which: Which) -> list[str]:
        scale, attacks = self._experiment.scale, self._experiment.attacks
        if which == "patient":
            return [] if attacks else list(patient_attacks_on(defence, scale))
        every = attacks or every_attack_on(defence, scale)
        return [spec for spec in every if is_quick(spec) is (which == "quick")]


def _disclosed(cell: Cell, victims: Sequence[VictimScore], *, patient: bool) -> Disclosed:
    tally, (attack,) = score(victims), cell.attacks
    ssim = max((victim.ssim for victim in victims if victim.ssim is not None), default=None)
    if not tally.victims:
        return Disclosed(attack=attack, ssim=ssim)
    name = f"patient {attack_title(attack)}" if patient else attack_title(attack)
    where = wording.protocol_name(cell.protocol).partition(" ")[0]
    state = f", after {cell.epoch} epoch(s)" if cell.epoch else ""
    reason = f"{name} reconstructs {tally.successes} of {tally.victims} images under {where}{state}"
    return Disclosed(
        images=tally.successes,
        victims=tally.victims,
        updates=math.ceil(tally.victims / (cell.batch_size * max(1, cell.local_steps))),
        attack=attack,
        ssim=ssim,
        reason=reason if tally.successes else "",
    )
