"""Through low-rank branches: the frozen layers' own gradients from those of LoRA's, and other attacks on these."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Generator, Tensor

from attacker.analytic.branches.frozen_gradient import WithoutBranches, without_branches
from attacker.analytic.branches.low_rank_branch import LowRankBranch, low_rank_branches
from attacker.attacks.base import Attack, Progress, Reconstruction
from attacker.attacks.closed_form.activation_span import ActivationSpan
from attacker.attacks.closed_form.feature_inversion import FeatureInversion
from attacker.attacks.registration import register_attack
from attacker.gradients.dropout_masks import dropout_layers
from attacker.gradients.observed import why_not_one_step
from attacker.reasons import Reason, because, joined
from attacker.victim import Victim
from fl_precode.observation import Observation


@register_attack(
    "through-branches",
    title="inversion through low-rank branches",
    description="LoRA: the frozen layers' gradients from their branches', then activation-span or feature-inversion",
    source="this project; Hu et al., ICLR 2022",
    rank=82,
    cost=700.0,
    colour="#a21caf",
)
@dataclass(frozen=True, kw_only=True)
class ThroughBranches(Attack):
    """The gradient that a frozen layer would have, from its low-rank branch, and the attacks that this makes possible.

    A client that trains ``B`` and ``A`` beside a frozen ``W``, as LoRA does (Hu et al., ICLR 2022), sends two sketches
    of the gradient G by W: ``B' G`` and ``G A'``. Where no more vectors entered the layer than the rank of A, they
    determine G itself (`attacker.analytic.branches`). The update is then that of a model of plain layers, each with its
    branch added to its weight, and without biases, which LoRA freezes: `ActivationSpan` is made where the first two
    layers have such branches, else `FeatureInversion`.

    Before the first round B is zero, and so is the gradient of A. Where more vectors enter than A has rows, as the
    tokens of a transformer do, G is cut: the reason says so. One local step alone: A and B move with the next one.

    Attributes:
        steps: Steps of the search for images from features, 1 or more.
        learning_rate: Learning rate of this search, positive.
        total_variation: Weight of total variation in this search, 0 or more.

    Raises:
        ValueError: If a setting is out of its range.
    """

    steps: int = 1_000
    learning_rate: float = 0.3
    total_variation: float = 1e-3

    def __post_init__(self) -> None:
        self._inner(0.0)

    @property
    def name(self) -> str:
        """Name in the registry."""
        return "through-branches"

    def refuses(self, victim: Victim, observation: Observation) -> Reason | None:
        """Reason why the attack cannot fit the observation, or None when it can."""
        several = why_not_one_step(observation)
        if several is not None:
            return several
        branches = low_rank_branches(victim, observation)
        if not branches:
            return because("no-branch")
        if dropped := _why_dropped(victim, branches):
            return dropped
        plain = without_branches(victim, branches, observation)
        if not plain.solved:
            return plain.lost[0]
        chosen = self._chosen(plain)
        return chosen if isinstance(chosen, Reason) else None

    def run(
        self,
        victim: Victim,
        observations: Sequence[Observation],
        labels: Sequence[Tensor | None],
        generators: Sequence[Generator],
        progress: Progress | None,
    ) -> list[Reconstruction]:
        """Plain gradients, and the first attack that fits them."""
        results = []
        for index, (observation, granted, generator) in enumerate(zip(observations, labels, generators, strict=True)):
            began = time.perf_counter()
            plain = without_branches(victim, low_rank_branches(victim, observation), observation)
            attack = self._chosen(plain)
            assert isinstance(attack, Attack)
            (result,) = attack(plain.victim, [plain.observation], generator=[generator], labels=[granted])
            names = ", ".join(repr(name) for name in plain.solved)
            words = because("branches-solved", names=names, error=plain.error)
            inputs = None if result.inputs is None else result.inputs.to(next(iter(observation.parameters.values())))
            spent = time.perf_counter() - began
            results.append(
                replace(result, inputs=inputs, reason=joined([words, result.reason]), method=attack.name, seconds=spent)
            )
            if progress is not None:
                progress((index + 1) / len(observations), None)
        return results

    def _inner(self, error: float) -> tuple[Attack, ...]:
        features = FeatureInversion(
            steps=self.steps, learning_rate=self.learning_rate, total_variation=self.total_variation, noise=error
        )
        return ActivationSpan(), features

    def _chosen(self, plain: WithoutBranches) -> Attack | Reason:
        """The first attack that fits, or why the last one does not."""
        reasons: list[Reason] = []
        for attack in self._inner(plain.error):
            why = attack.why_not(plain.victim, plain.observation)
            if why is None:
                return attack
            reasons.append(why)
        return because("branches-not-enough", why=joined(reasons))


def _why_dropped(victim: Victim, branches: Sequence[LowRankBranch]) -> Reason | None:
    for branch in branches:
        for name in dropout_layers(victim.model):
            if name.startswith(f"{branch.name}." if branch.name else ""):
                return because("branch-drops", dropout=name, name=branch.down, other=branch.up)
    return None
