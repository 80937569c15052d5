"""Dropout inversion: the masks that the client's dropout drew are searched together with the images."""

from __future__ import annotations

from dataclasses import dataclass, replace

from attacker.attacks.adaptive.base import AdaptiveMatching
from attacker.attacks.adaptive.noise_restoring import check_rate
from attacker.attacks.adaptive.specs import build_adaptive, options_of
from attacker.attacks.announced_update import COMPARED
from attacker.attacks.defence_names import BOTTLENECKS, DROPOUT
from attacker.attacks.registration import register_attack
from attacker.attacks.side_information import NoiseSearch, SideInformation
from attacker.gradients.dropout_masks import MaskedDropout, with_masks
from attacker.gradients.trace import Trace
from attacker.reasons import Reason, because
from attacker.victim import Victim
from fl_precode.observation import Observation


@register_attack(
    "dropout-inversion",
    title="dropout inversion",
    description="gradient matching that optimises dropout masks, and bottlenecks' noise, with the images",
    source="Scheliga et al., AAAI 2023",
    build=build_adaptive,
    options=options_of,
    answers=DROPOUT | BOTTLENECKS | COMPARED,
    inside=DROPOUT,
    needs=frozenset({"batch-size", "defence"}),
    rank=100,
)
@dataclass(frozen=True, kw_only=True)
class DropoutInversion(AdaptiveMatching):
    """DIA (Scheliga, Mäder, Seeland, AAAI 2023, arXiv 2208.06163): optimise images and dropout masks.

    Masks are numbers in [0, 1] for each image, start at the share that passes on average, and move by plain Adam; the
    squared difference between the share that a mask drops and p is added to the loss. Plain attacks replay without
    masks, as in evaluation mode. The noise of a bottleneck in the same model is searched as well.

    Attributes:
        mask_rate: Adam's first step for masks, positive.
        mask_penalty: Weight of the penalty, 0 or more.
    """

    mask_rate: float = 0.01
    mask_penalty: float = 1e-4

    def __post_init__(self) -> None:
        check_rate("mask_rate", self.mask_rate)
        super().__post_init__()

    @property
    def name(self) -> str:
        """Name in the registry."""
        return "dropout-inversion"

    @property
    def noise_search(self) -> NoiseSearch:
        """All masks and noise are optimised."""
        return NoiseSearch(rate=self.mask_rate, mask_penalty=self.mask_penalty)

    def adapted(self, victim: Victim) -> Victim:
        """The victim with dropout that takes masks."""
        return replace(victim, model=with_masks(victim.model))

    def knowledge(self, victim: Victim, model_trace: Trace, observation: Observation) -> SideInformation | Reason:
        """Nothing besides that there are masks."""
        del victim, observation
        if not any(isinstance(run.module, MaskedDropout) for run in model_trace.random):
            return because("no-dropout")
        return SideInformation()
