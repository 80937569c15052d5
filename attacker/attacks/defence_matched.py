"""Inverting Gradients whose distance and layers follow the announced defence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Generator, Tensor, nn

from attacker.attacks.adaptation import Knowledge, NoiseSearch
from attacker.attacks.adaptive import AdaptiveMatching
from attacker.attacks.attack import Progress, Reconstruction
from attacker.attacks.gradient_matching import GradientMatching
from attacker.attacks.matched_distance import matched_distance
from attacker.engine import SCALED, Trace, trace, why_scale_unknown
from attacker.engine.noise_free import before_noise
from attacker.victim import Victim
from fl_precode.defences import defence_parts
from fl_precode.observation import Observation
from fl_precode.spec import Spec

_BOTTLENECKS = frozenset({"precode", "precode-reference", "cvb", "cvb-reference"})
_CONVERGED_SQUARED = 1e-6
"""As for DLG's squared distance."""

_SCALE_FREE = {"l2": "cosine", "l1": "cosine", "l2-kept": "cosine-kept"}

ANSWERED = _BOTTLENECKS | {"noise", "laplace", "prune", "ppp", "soteria"}
"""Defences that the attack adapts to, by name."""


@dataclass(frozen=True, kw_only=True)
class DefenceMatched(AdaptiveMatching):
    """Match what the announced defence left, by the distance that its noise makes likeliest (Balunović et al. 2022).

    Part by part of the announced spec: noise sets the distance (`matched_distance`); pruning leaves only what was sent;
    Soteria's layer is left out, by its weight, which is all that Soteria changes; behind a bottleneck only what runs
    before its noise counts (`attacker.attacks.ignoring`), with fresh noise at each step. ``ppp`` adds Gaussian noise to
    exactly these layers. Where the gradient's scale is not known, because it was clipped or the learning rate was not
    announced, the distance is the cosine. Signs, quantisation, clipping, dropout and DP-SGD change nothing that this
    attack does.

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

    def knowledge(self, victim: Victim, seen: Trace, observation: Observation) -> Knowledge | str:
        """Which layers count, or why there is nothing to adapt to."""
        defence = observation.protocol.defence
        if defence is None:
            return "no defence was announced: nothing to adapt to"
        parts = _parts(defence)
        if not ANSWERED & parts.keys():
            return f"nothing to adapt to: {defence!r} leaves what this attack matches as it is"
        matched = frozenset(observation.parameters)
        if _BOTTLENECKS & parts.keys():
            if not seen.bottlenecks:
                return f"a bottleneck was announced ({defence!r}), and the model has none"
            matched = before_noise(seen)
        if "soteria" in parts:
            layer = parts["soteria"].options.get("layer") or _last_linear(seen)
            if f"{layer}.weight" not in observation.parameters:
                return f"the layer that soteria defends, {layer!r}, is not in the model"
            matched = matched - {f"{layer}.weight"}
        return Knowledge(matched=matched) if matched else f"{defence!r} leaves no parameter to match"

    def refuses(self, victim: Victim, observation: Observation) -> str | None:
        """Why the attack cannot fit the observation, or None when it can."""
        known = self.knowledge(victim, trace(victim), observation)
        if isinstance(known, str):
            return known
        chosen = replace(self, matching=_matching(self.matching, _distance(observation)))
        return super(DefenceMatched, chosen).refuses(victim, observation)

    def run(
        self,
        victim: Victim,
        observations: Sequence[Observation],
        labels: Sequence[Tensor | None],
        generators: Sequence[Generator],
        progress: Progress | None,
    ) -> list[Reconstruction]:
        """Search by each observation's own distance."""
        results: dict[int, Reconstruction] = {}
        by_distance: dict[str, list[int]] = {}
        for index, one in enumerate(observations):
            by_distance.setdefault(_distance(one), []).append(index)
        for distance, indices in by_distance.items():
            chosen = replace(self, matching=_matching(self.matching, distance))
            found = super(DefenceMatched, chosen).run(
                victim,
                [observations[i] for i in indices],
                [labels[i] for i in indices],
                [generators[i] for i in indices],
                progress,
            )
            results.update(zip(indices, found, strict=True))
        return [replace(results[i], reason=f"matched by {_distance(one)}") for i, one in enumerate(observations)]


def _matching(settings: GradientMatching, distance: str) -> GradientMatching:
    """The settings with a distance, and with what counts as converged on its scale."""
    below = min(settings.converged_below, _CONVERGED_SQUARED) if distance in SCALED else settings.converged_below
    return replace(settings, distance=distance, converged_below=below)


def _distance(observation: Observation) -> str:
    """The distance that fits what was announced, and what is known of the scale."""
    defence = observation.protocol.defence or "none"
    parts = _parts(defence)
    distance = "l2" if "ppp" in parts and "prune" not in parts else matched_distance(defence)
    free = "clip" in parts or why_scale_unknown(observation) is not None
    return _SCALE_FREE.get(distance, distance) if free else distance


def _parts(defence: str) -> dict[str, Spec]:
    """Specs of the parts by name."""
    return {one.name: one for one in defence_parts(defence)}


def _last_linear(seen: Trace) -> str:
    """Name of the Linear layer that Soteria defends when no layer is named: the last that is no bottleneck's own."""
    inside = tuple(f"{run.name}." for run in seen.bottlenecks)
    names = [run.name for run in seen.layers if isinstance(run.module, nn.Linear) and not run.name.startswith(inside)]
    return names[-1] if names else ""
