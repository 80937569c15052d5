"""Noise restoring: the noise that the client's bottlenecks drew is searched together with the images."""

from __future__ import annotations

from dataclasses import dataclass

from attacker.attacks.adaptive.base import AdaptiveMatching
from attacker.attacks.adaptive.specs import build_adaptive, options_of
from attacker.attacks.announced_update import COMPARED
from attacker.attacks.defence_names import BOTTLENECKS
from attacker.attacks.registration import register_attack
from attacker.attacks.side_information import NoiseSearch, SideInformation
from attacker.gradients.trace import Trace
from attacker.reasons import Reason, because
from attacker.victim import Victim
from fl_precode.observation import Observation


def check_rate(name: str, value: float) -> None:
    """Refuse a step that is not positive and finite.

    Raises:
        ValueError: If it is not.
    """
    if not 0 < value < float("inf"):
        raise ValueError(f"expected a positive, finite {name}, got {value!r}")


@register_attack(
    "noise-restoring",
    title="noise restoring",
    description="gradient matching that optimises the noise of bottlenecks with the images",
    source="Scheliga et al., arXiv 2208.04767",
    build=build_adaptive,
    options=options_of,
    answers=BOTTLENECKS | COMPARED,
    inside=BOTTLENECKS,
    needs=frozenset({"batch-size", "defence"}),
    rank=80,
    cost_of_iteration=1.3,
    portfolio=8,
)
@dataclass(frozen=True, kw_only=True)
class NoiseRestoring(AdaptiveMatching):
    """Optimise (x', eps') so that all gradients match; eps' starts from N(0, 1) for each candidate and layer.

    The images move by the sign of their gradient where the settings say so, eps' by plain Adam with a step of its own
    that falls with the same schedule. The result keeps the eps' at which its distance was measured. In local training
    eps' is one draw for each image, while clients draw anew at each step.

    Attributes:
        noise_rate: Adam's first step for eps', positive.
    """

    noise_rate: float = 0.1

    def __post_init__(self) -> None:
        check_rate("noise_rate", self.noise_rate)
        super().__post_init__()

    @property
    def name(self) -> str:
        """Name in the registry."""
        return "noise-restoring"

    @property
    def noise_search(self) -> NoiseSearch:
        """All noise is optimised."""
        return NoiseSearch(rate=self.noise_rate)

    def knowledge(self, victim: Victim, model_trace: Trace, observation: Observation) -> SideInformation | Reason:
        """Nothing besides that there is noise."""
        del victim, observation
        return SideInformation() if model_trace.bottlenecks else because("no-bottleneck.plain")
