"""Inverting Gradients whose distance and layers follow the announced defence."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from attacker.attacks.adaptive.base import AdaptiveMatching
from attacker.attacks.adaptive.specs import build_adaptive, options_of
from attacker.attacks.announced_update import COMPARED, announced_parts
from attacker.attacks.defence_names import BOTTLENECKS, SCALING
from attacker.attacks.registration import register_attack
from attacker.attacks.side_information import NoiseSearch, SideInformation
from attacker.gradients.noise_free_layers import before_noise
from attacker.gradients.trace import Trace
from attacker.reasons import Reason, because
from attacker.victim import Victim
from fl_precode.observation import Observation

ANSWERED = BOTTLENECKS | COMPARED
"""Defences that the attack adapts to, by name."""


@register_attack(
    "defence-matched",
    title="defence-matched gradients",
    description="gradient matching by the distance and the layers that fit the announced defence",
    source="Balunović et al., ICLR 2022",
    build=build_adaptive,
    options=partial(options_of, without=("layers", "distance")),
    answers=ANSWERED,
    needs=frozenset({"batch-size", "defence"}),
    rank=110,
)
@dataclass(frozen=True, kw_only=True)
class DefenceMatched(AdaptiveMatching):
    """Match what the announced defence left, by the distance that its noise makes likeliest (Balunović et al. 2022).

    What was done to the update is compared as in every adaptive search (`announced_comparison`). Behind a bottleneck
    only what runs before its noise counts (`attacker.attacks.adaptive.ignore`), with fresh noise at each step. Signs,
    dropout and DP-SGD change nothing that this attack does.

    Attributes:
        draws: Draws of a bottleneck's noise at each step, 1 or more.
    """

    draws: int = 1

    @property
    def name(self) -> str:
        """Name in the registry."""
        return "defence-matched"

    @property
    def noise_search(self) -> NoiseSearch:
        """Fresh draws."""
        return NoiseSearch(draws=self.draws)

    def knowledge(self, victim: Victim, model_trace: Trace, observation: Observation) -> SideInformation | Reason:
        """Layers that count, or the reason why there is nothing to adapt to."""
        defence = observation.protocol.defence
        if defence is None:
            return because("no-defence-announced")
        names = {part.name for part in announced_parts(observation)}
        # What leaves the direction changes nothing that Inverting Gradients sees.
        if not (ANSWERED - SCALING) & names:
            return because("defence-leaves-all", defence=defence)
        if not BOTTLENECKS & names:
            return SideInformation()
        if not model_trace.bottlenecks:
            return because("no-bottleneck.announced", defence=defence)
        return SideInformation(matched=before_noise(model_trace))
