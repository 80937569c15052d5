"""One family on its ladder: where nothing is reconstructed, where the accuracy stays, and whether the two meet."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from attacker.experiments.defence_search.disclosure import PROTOCOLS, Attacks, Disclosed, Part, Which
from attacker.experiments.defence_search.families import Family
from attacker.experiments.defence_search.ladder import RUNGS, TOP, highest, lowest, settled
from attacker.experiments.defence_search.utility import Lost, Utility

Verdict = Literal["recommended", "falls", "falls when judged", "costs accuracy", "cannot be judged"]


@dataclass(kw_only=True)
class Climb:
    """What is known of a family, rung by rung. Nothing is measured before it is asked for, nor twice.

    Attributes:
        family: What is climbed.
        norms: By protocol the norm that it clips at.
        attacks: On what its clients send.
        utility: Utility of what they train.
        formulas: Rung to what formulas reconstructed of validation images.
        searches: Rung to what all other attacks reconstructed of them.
        judged: Kind of attack to what was reconstructed of unseen images at the rung that was judged.
        lost: Protocol and rung to accuracy.
        leaked: Rungs that leaked above one that held.
        lowest: At which nothing is reconstructed of validation images.
        affordable: The highest at which the accuracy stays; None for none, or unknown.
        verdict: In the end.
        reason: Reason for it.
        judged_rung: On which it was judged.
        bare: What is reconstructed without noise.
    """

    family: Family
    norms: dict[str, float]
    attacks: Attacks
    utility: Utility
    formulas: dict[int, Disclosed] = field(default_factory=dict)
    searches: dict[int, Disclosed] = field(default_factory=dict)
    judged: dict[str, Disclosed] = field(default_factory=dict)
    lost: dict[tuple[str, int], Lost] = field(default_factory=dict)
    leaked: list[int] = field(default_factory=list)
    lowest: int | None = None
    affordable: int | None = None
    verdict: Verdict = "cannot be judged"
    reason: str = ""
    judged_rung: int | None = None
    bare: Disclosed | None = None

    def run(self) -> None:
        """Formulas first, which take seconds, then accuracy, then searches, which take minutes, then unseen images.

        A family that formulas break at every rung that can be afforded is searched no further.
        """
        bottom = lowest(self._stands_formulas)
        if bottom is None:
            self._end("falls", self.formulas[TOP].reason + ", whatever the noise")
            return
        without = next((why for one in PROTOCOLS if (why := self.utility.why_not(self.family, one))), "")
        if without:
            self._end("cannot be judged", without)
            return
        if not self._kept(bottom):
            below = "formulas reconstruct images below noise of {noise:g}" if bottom else "the least noise, {noise:g}"
            self._too_dear(bottom, f"{below}, which costs")
            return
        self._search(bottom)

    def _search(self, bottom: int) -> None:
        first = bottom if self._holds(bottom) else lowest(self._holds, bottom + 1)
        if first is None:
            found = self.at(TOP)
            if found.images is None:
                self._end("cannot be judged", "no attack fits these updates")
            else:
                self._end("falls", f"{found.reason}, whatever the noise")
            return
        rung, self.leaked = settled(self._holds, first)
        if rung is None:
            self._end("falls", f"{self.at(TOP).reason}, although less noise held")
            return
        self.lowest = rung
        # One rung more than was needed for validation images, if it can be had: unseen ones may need a little more.
        chosen = next((one for one in (rung + 1, rung) if one <= TOP and self._kept(one)), None)
        if chosen is None:
            self._too_dear(rung, "nothing is reconstructed from noise of {noise:g} on, which costs")
            return
        self.affordable = max(rung, chosen)
        self.judge(chosen)

    def judge(self, rung: int) -> None:
        """Attack unseen images at a rung, by formulas first; what reconstructs one ends it."""
        self.judged_rung = rung
        every = self.utility.experiment.scale.attacked
        trained = tuple(epoch for epoch in every if epoch)
        steps: list[tuple[str, Which, tuple[int, ...]]] = [
            ("formulas", "quick", every),
            ("searches, untrained", "searches", tuple(epoch for epoch in every if not epoch)),
            ("searches, trained", "searches", trained),
            ("patient searches", "patient", every),
        ]
        for name, which, epochs in steps:
            found = self.attacks.on(self.family, self.defences(rung), part="judged", which=which, epochs=epochs)
            self.judged[name] = found
            if found.images:
                self._end("falls when judged", found.reason)
                return
        self._end("recommended", "")

    def defences(self, rung: int) -> dict[str, str]:
        """By protocol the spec with a rung's noise."""
        return {protocol: self.family.defence(rung, norm) for protocol, norm in self.norms.items()}

    def at(self, rung: int) -> Disclosed:
        """What was reconstructed of validation images; searches are made only where formulas reconstruct nothing."""
        found = self._of_formulas(rung)
        if found.images:
            return found
        if rung not in self.searches:
            self.searches[rung] = self._on_validation(self.defences(rung), "searches")
        return found.joined(self.searches[rung])

    def without_noise(self) -> Disclosed:
        """What is reconstructed of validation images with the same batches and steps, and no noise."""
        if self.bare is None:
            defences: dict[str, str] = dict.fromkeys(PROTOCOLS, self.family.within)
            found = self._on_validation(defences, "quick")
            self.bare = found if found.images else found.joined(self._on_validation(defences, "searches"))
        return self.bare

    def cost(self, rung: int, protocol: str) -> Lost:
        """Accuracy at a rung."""
        key = protocol, rung
        if key not in self.lost:
            self.lost[key] = self.utility.lost(self.family, self.family.defence(rung, self.norms[protocol]), protocol)
        return self.lost[key]

    def points(self, rung: int) -> float:
        """What is lost at a rung, under the protocol that loses more."""
        return max(self.cost(rung, protocol).mean for protocol in PROTOCOLS)

    def values(self) -> tuple[float, float]:
        """Figures to choose the next family by: lost where nothing is reconstructed, disclosed where accuracy stays."""
        if self.verdict == "recommended":
            return max(0.0, self.points(self.lowest or 0)), 0.0
        if self.verdict == "falls when judged":
            return 0.0, max(_share(found) for found in self.judged.values())
        if self.lowest is not None:
            known = 0 if self.affordable is None else self.affordable
            return max(0.0, self.points(self.lowest)), _share(self.formulas.get(known) or self.at(known))
        return 1.0, 1.0

    def _end(self, verdict: Verdict, reason: str) -> None:
        self.verdict, self.reason = verdict, reason

    def _too_dear(self, rung: int, sentence: str) -> None:
        """The curves do not meet: find out how far apart they are."""
        self.lowest = rung
        self.affordable = highest(self._kept, 0, rung - 1) if rung else None
        protocol, lost = max(
            ((protocol, self.lost[protocol, rung]) for protocol in PROTOCOLS if (protocol, rung) in self.lost),
            key=lambda pair: pair[1].mean,
        )
        upto = "nothing on the ladder" if self.affordable is None else f"noise up to {RUNGS[self.affordable]:g}"
        costs = f"{sentence.format(noise=RUNGS[rung])} {lost.mean * 100:.1f} points under {protocol}"
        self._end("costs accuracy", f"{costs}; {upto} keeps the accuracy")

    def _stands_formulas(self, rung: int) -> bool:
        return not self._of_formulas(rung).images

    def _of_formulas(self, rung: int) -> Disclosed:
        if rung not in self.formulas:
            self.formulas[rung] = self._on_validation(self.defences(rung), "quick")
        return self.formulas[rung]

    def _on_validation(self, defences: dict[str, str], which: Literal["quick", "searches"]) -> Disclosed:
        part: Part = "validation"
        return self.attacks.on(self.family, defences, part=part, which=which)

    def _holds(self, rung: int) -> bool:
        return self.at(rung).holds

    def _kept(self, rung: int) -> bool:
        return all(self.cost(rung, protocol).kept for protocol in PROTOCOLS)


def _share(found: Disclosed) -> float:
    return (found.images or 0) / max(1, found.victims)
