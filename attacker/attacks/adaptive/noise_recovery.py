"""Noise recovery: compute the noise that the client drew, then match gradients as if there were none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Generator, Tensor

from attacker.analytic.bottleneck_noise import RecoveredNoise, recover_noise
from attacker.attacks.adaptive.base import AdaptiveMatching
from attacker.attacks.adaptive.noise_restoring import check_rate
from attacker.attacks.adaptive.specs import build_adaptive, options_of
from attacker.attacks.announced_update import COMPARED
from attacker.attacks.base import Progress, Reconstruction
from attacker.attacks.defence_names import PRECODE
from attacker.attacks.registration import register_attack
from attacker.attacks.side_information import NoiseSearch, SideInformation
from attacker.gradients.trace import Trace, trace
from attacker.reasons import Reason, because, joined
from attacker.victim import Victim
from fl_precode.observation import Observation


@register_attack(
    "noise-recovery",
    title="noise recovery",
    description="one image: the noise that PRECODE drew, in closed form; then matching as without PRECODE",
    source="this project",
    build=build_adaptive,
    options=options_of,
    answers=PRECODE | COMPARED,
    inside=PRECODE,
    needs=frozenset({"batch-size", "defence"}),
    rank=70,
    portfolio=7,
)
@dataclass(frozen=True, kw_only=True)
class NoiseRecovery(AdaptiveMatching):
    """Closed-form noise recovery (`attacker.analytic.bottleneck_noise`), for one image and one step; in no source.

    With its noise known a bottleneck is an ordinary layer. The features that entered it are known as well, and are
    added to the loss as ``feature_weight * |f(x') - h|^2 / |h|^2``. What is matched by default are the layers before
    the last bottleneck, without those of bottlenecks: their large matrices tell only what the features tell, and
    drown the others (measured: docs/reference/attacks.md). ``layers`` in the settings chooses otherwise.

    Noise of bottlenecks that cannot be recovered, such as convolutional ones, is searched as `NoiseRestoring` does it,
    by all layers but the recovered bottlenecks'; features behind such noise have no target.

    Attributes:
        feature_weight: Weight of the known features, 0 or more.
        noise_rate: Adam's first step for noise that could not be recovered, positive.
    """

    feature_weight: float = 1.0
    noise_rate: float = 0.1

    def __post_init__(self) -> None:
        check_rate("noise_rate", self.noise_rate)
        super().__post_init__()

    @property
    def name(self) -> str:
        """Name in the registry."""
        return "noise-recovery"

    @property
    def noise_search(self) -> NoiseSearch:
        """Optimise what is not known."""
        return NoiseSearch(rate=self.noise_rate, feature_weight=self.feature_weight)

    def knowledge(self, victim: Victim, model_trace: Trace, observation: Observation) -> SideInformation | Reason:
        """Noise, and features up to the first bottleneck whose noise is not known, in the update's dtype."""
        recovered = recover_noise(victim, observation, model_trace)
        if not recovered.bottlenecks:
            return because("no-bottleneck.plain")
        if all(layer is None for layer in recovered.bottlenecks):
            return joined(dict.fromkeys(recovered.reasons))
        like = next(iter(observation.parameters.values()))
        features = {}
        for bottleneck in recovered.bottlenecks:
            if bottleneck is None:
                break
            features[bottleneck.name] = bottleneck.features.to(like)
        noise = tuple(None if layer_noise is None else layer_noise.to(like) for layer_noise in recovered.noise)
        matched = None if self.matching.layers else _matched(model_trace, recovered, observation)
        return SideInformation(matched=matched, noise=noise, features=features)

    def run(
        self,
        victim: Victim,
        observations: Sequence[Observation],
        labels: Sequence[Tensor | None],
        generators: Sequence[Generator],
        progress: Progress | None,
    ) -> list[Reconstruction]:
        """As every adaptive search; the reason of each result says how well the closed form holds."""
        model_trace = trace(victim)
        results = super().run(victim, observations, labels, generators, progress)
        return [
            replace(
                result, reason=joined([*_recovery_words(recover_noise(victim, seen_one, model_trace)), result.reason])
            )
            for result, seen_one in zip(results, observations, strict=True)
        ]


def _matched(model_trace: Trace, recovered: RecoveredNoise, observation: Observation) -> frozenset[str] | None:
    """Parameters that count: see `NoiseRecovery`; None for all where these would be none."""
    prefixes = tuple(
        f"{run.name}."
        for run, bottleneck in zip(model_trace.bottlenecks, recovered.bottlenecks, strict=True)
        if bottleneck is not None
    )
    outside = frozenset(name for name in observation.parameters if not name.startswith(prefixes))
    if not recovered.complete:
        return outside or None
    last = f"{model_trace.bottlenecks[-1].name}."
    names = [run.name for run in model_trace.layers]
    behind = names[max((place for place, name in enumerate(names) if name.startswith(last)), default=-1) + 1 :]
    return frozenset(name for name in outside if name.rpartition(".")[0] not in behind) or None


def _recovery_words(recovered: RecoveredNoise) -> list[Reason]:
    parts = [
        because("noise-recovered", name=bottleneck.name, residual=bottleneck.residual)
        for bottleneck in recovered.bottlenecks
        if bottleneck is not None
    ]
    return [*parts, *(because("noise-recovered.not", why=reason) for reason in recovered.reasons if reason)]
