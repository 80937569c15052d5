"""Through the bottleneck: PRECODE's encoder is where layer-wise inversion starts, whatever noise the client drew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Generator, Tensor

from attacker.attacks.base import Attack, Progress, Reconstruction
from attacker.attacks.closed_form.estimate import estimates, why_not_invertible
from attacker.attacks.closed_form.layerwise import reconstructions
from attacker.attacks.defence_names import PRECODE
from attacker.attacks.registration import register_attack
from attacker.reasons import Reason
from attacker.victim import Victim
from fl_precode.observation import Observation


@register_attack(
    "through-bottleneck",
    title="inversion through the bottleneck",
    description="layer-wise inversion from PRECODE's encoder down: whatever the noise was, one image",
    source="this project; Zhu, Blaschko, ICLR 2021",
    answers=PRECODE,
    needs=frozenset({"defence"}),
    rank=20,
    cost=150.0,
    exact=True,
    portfolio=3,
)
@dataclass(frozen=True, kw_only=True)
class ThroughBottleneck(Attack):
    """Enter a model defended by PRECODE at the encoder of its first bottleneck, and invert the layers before it.

    The encoder is fully connected and has a bias: with one image its gradients are ``dW = d h'`` and ``db = d``, so
    that ``h = dW' d / |d|^2`` and ``dL/dh = W' d``, exact whatever the noise was, KL term included. The layers before
    are then those of the undefended model (`LayerwiseInversion`): no search, no label, no noise to average over.

    Fits one image and one step, PRECODE as published (`fl_precode.VariationalBottleneck`), and layers before it that
    `LayerwiseInversion` fits. The label is that of the classifier behind the bottleneck, where it tells one.
    """

    @property
    def name(self) -> str:
        """Name in the registry."""
        return "through-bottleneck"

    def refuses(self, victim: Victim, observation: Observation) -> Reason | None:
        """Reason why the attack cannot fit the observation, or None when it can."""
        return why_not_invertible(victim, observation, through_bottleneck=True)

    def run(
        self,
        victim: Victim,
        observations: Sequence[Observation],
        labels: Sequence[Tensor | None],
        generators: Sequence[Generator],
        progress: Progress | None,
    ) -> list[Reconstruction]:
        """Solve; consumes no randomness."""
        solutions = estimates(victim, observations, through_bottleneck=True)
        return reconstructions(victim, solutions, observations, labels, progress)
