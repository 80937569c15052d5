"""Ignore: gradient matching without the layers that a bottleneck's noise makes random."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from attacker.attacks.adaptive.base import AdaptiveMatching
from attacker.attacks.adaptive.specs import build_adaptive, options_of
from attacker.attacks.announced_update import COMPARED
from attacker.attacks.defence_names import BOTTLENECKS
from attacker.attacks.registration import register_attack
from attacker.attacks.side_information import NoiseSearch, SideInformation
from attacker.gradients.noise_free_layers import before_noise
from attacker.gradients.trace import Trace
from attacker.reasons import Reason, because
from attacker.victim import Victim
from fl_precode.observation import Observation


@register_attack(
    "ignore",
    title="Ignore",
    description="gradient matching without the layers that a bottleneck's noise makes random",
    source="Scheliga et al., arXiv 2208.04767",
    build=build_adaptive,
    options=partial(options_of, without=("layers",)),
    answers=BOTTLENECKS | COMPARED,
    inside=BOTTLENECKS,
    needs=frozenset({"batch-size", "defence"}),
    rank=90,
    portfolio=9,
)
@dataclass(frozen=True, kw_only=True)
class Ignore(AdaptiveMatching):
    """Leave the decoder of every bottleneck and all later layers out of the distance (Scheliga, Mäder, Seeland).

    Combining Stochastic Defenses to Resist Gradient Inversion (arXiv 2208.04767), Privacy Preserving Federated Learning
    with Convolutional Variational Bottlenecks (arXiv 2309.04515). What counts is read off the model: layers that run
    before the first bottleneck draws its noise, its encoder included. The replayed loss has the KL term, and noise of
    its own: drawn anew at each step, ``draws`` times, and the mean of the distances counts.

    Attributes:
        draws: Draws of noise at each step, 1 or more; each costs one gradient.
    """

    draws: int = 1

    @property
    def name(self) -> str:
        """Name in the registry."""
        return "ignore"

    @property
    def noise_search(self) -> NoiseSearch:
        """Fresh draws."""
        return NoiseSearch(draws=self.draws)

    def knowledge(self, victim: Victim, model_trace: Trace, observation: Observation) -> SideInformation | Reason:
        """Layers that count."""
        del victim, observation
        if not model_trace.bottlenecks:
            return because("no-bottleneck.plain")
        matched = before_noise(model_trace)
        if not matched:
            return because("nothing-before-noise", name=model_trace.bottlenecks[0].name)
        return SideInformation(matched=matched)
