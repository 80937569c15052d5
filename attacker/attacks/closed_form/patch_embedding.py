"""One image of a vision transformer by one least-squares solve: the gradients of positions are those of patches."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Generator, Tensor

from attacker.analytic.patches.patch_layer import PatchLayer, patch_layer
from attacker.analytic.patches.positions import PositionEmbedding, position_embedding
from attacker.analytic.patches.token_equations import SolvedPatches, smooth_covariance, solve_patches
from attacker.attacks.base import Attack, Outcome, Progress, Reconstruction
from attacker.attacks.best_match import EXACT_BELOW
from attacker.attacks.defence_names import BOTTLENECKS, DROPOUT, SCALING
from attacker.attacks.known_labels import known_labels
from attacker.attacks.registration import register_attack
from attacker.gradients.observed import steps_behind
from attacker.gradients.trace import trace
from attacker.reasons import Reason, because, joined
from attacker.victim import Victim
from fl_precode.observation import Observation

ONE_IMAGE = 0.1
"""Share of the patch layer's gradient that positions may leave unexplained where the number of images is unknown."""


@register_attack(
    "patch-embedding",
    title="patch embedding",
    description="one image of a vision transformer: position gradients give all patches by one least-squares solve",
    source="own; positions after Lu et al., APRIL, CVPR 2022",
    # All of them stand behind the positions, or scale the gradient as a whole.
    answers=BOTTLENECKS | DROPOUT | SCALING,
    oblivious=True,
    rank=12,
    cost=0.5,
    exact=True,
    portfolio=10,
)
@dataclass(frozen=True, kw_only=True)
class PatchEmbedding(Attack):
    """All patches of one image from the gradients of a position embedding and of the layer that sees the patches.

    Token t is ``W x_t + b + p_t`` with a learned position p_t. So ``dL/dp_t`` is the gradient at the token, whatever
    comes later, and ``dL/dW = sum_t dL/dp_t x_t'``: one linear system for all patches, with no label, loss, attention,
    norm or head in it. Patch layer and positions are found by what they do (`patch_layer`, `position_embedding`):
    convolutions of any stride or Linear layers on patches, of images or volumes, positions of any layout, class and
    register tokens or none. Computed in float64 and returned in the observation's dtype, neither clamped nor refined.

    Fits one image. Local training on it is as exact as a gradient, whatever the steps, the learning rate and momentum:
    both gradients are then sums over the steps with the same weights, as patches stay the same. Announced weight decay
    is taken back. What the equations leave open (fewer numbers a token than patches, patches without a gradient, noise
    on the update) is filled in as smoothly as it may be, and `Reconstruction.reason` says so.

    The update itself confirms the image: ``matching_loss`` is ``|dL/dW - sum_t dL/dp_t x_t'|^2 / |dL/dW|^2``. The
    outcome is "converged" where it is small and every direction of the patches is determined.

    Attributes:
        smoothness: Patches over which likeness of neighbours is expected to fall by a factor of e, where the equations
            leave something open; 0 for none, which gives the smallest patches. 0 or more.
        least_share: Share of the patches' directions that must be determined at best, in (0, 1].

    Raises:
        ValueError: If a setting is out of its range.
    """

    smoothness: float = 2.0
    least_share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.smoothness < math.inf:
            raise ValueError(f"expected smoothness to be 0 or more patches, got {self.smoothness}")
        if not 0 < self.least_share <= 1:
            raise ValueError(f"expected least_share to be above 0 and at most 1, got {self.least_share}")

    @property
    def name(self) -> str:
        """Name in the registry."""
        return "patch-embedding"

    def refuses(self, victim: Victim, observation: Observation) -> Reason | None:
        """Reason why the attack cannot fit the observation, or None when it can."""
        if observation.batch_size not in (None, 1):
            return because("several-images", size=observation.batch_size)
        if reason := _why_no_sum(observation):
            return reason
        structure = _structure(victim)
        if isinstance(structure, Reason):
            return structure
        layer, positions = structure
        patches = len(layer.pixels)
        if min(layer.width, patches) < self.least_share * patches:
            share = layer.width / patches
            return because(
                "rank-below-patches",
                name=layer.name,
                width=layer.width,
                patches=patches,
                share=share,
                least=self.least_share,
            )
        return (
            None
            if observation.batch_size == 1
            else _why_not_one(self._solved(layer, positions, observation), layer, positions)
        )

    def run(
        self,
        victim: Victim,
        observations: Sequence[Observation],
        labels: Sequence[Tensor | None],
        generators: Sequence[Generator],
        progress: Progress | None,
    ) -> list[Reconstruction]:
        """One solve for each observation; labels alone consume randomness."""
        results: list[Reconstruction] = []
        for observation, granted, generator in zip(observations, labels, generators, strict=True):
            began = time.perf_counter()
            structure = _structure(victim)
            assert not isinstance(structure, Reason)  # the others are refused
            layer, positions = structure
            solved = self._solved(layer, positions, observation)
            known: Tensor | None = None
            if granted is not None or victim.why_no_loss is None:
                ((known, _),) = known_labels(victim, [replace(observation, batch_size=1)], [granted], [generator])
            result = self._result(layer, positions, solved, known, observation.update[layer.weight])
            results.append(replace(result, seconds=time.perf_counter() - began))
            if progress is not None:
                progress(len(results) / len(observations), None)
        return results

    def _solved(self, layer: PatchLayer, positions: PositionEmbedding, observation: Observation) -> SolvedPatches:
        gradient = summed_gradient(observation, (positions.name, layer.weight))
        covariance = smooth_covariance(layer.places(), self.smoothness) if self.smoothness else None
        return solve_patches(
            positions.token_gradients(gradient), gradient[layer.weight].reshape(layer.width, -1), covariance
        )

    def _result(
        self,
        layer: PatchLayer,
        positions: PositionEmbedding,
        solved: SolvedPatches,
        labels: Tensor | None,
        like: Tensor,
    ) -> Reconstruction:
        pixels, missing = layer.image(solved.values)
        inputs, patches = pixels.to(like.dtype), len(layer.pixels)
        if not bool(inputs.isfinite().all()):
            return Reconstruction(
                inputs=None, labels=labels, outcome=Outcome.DIVERGED, reason=because("image-not-finite")
            )
        determined = solved.rank == patches
        named, residual = positions.name, solved.residual
        reasons = [because("patches-solved", patches=patches, residual=residual, positions=named, name=layer.weight)]
        if not determined:
            how, rank, noise = "smooth" if self.smoothness else "small", solved.rank, solved.noise
            reasons.append(because("rank-below-patches.solved", rank=rank, patches=patches, noise=noise, how=how))
        if solved.unexplained is not None and solved.unexplained > ONE_IMAGE:
            share = solved.unexplained
            reasons.append(because("several-images.patches", positions=named, name=layer.weight, share=share))
        if missing:
            reasons.append(because("pixels-not-in-patches", count=missing))
        confirmed = determined and solved.residual**2 < 2 * EXACT_BELOW
        return Reconstruction(
            inputs=inputs,
            labels=labels,
            outcome=Outcome.CONVERGED if confirmed else Outcome.ITERATION_LIMIT,
            reason=joined(reasons),
            matching_loss=solved.residual**2,
        )


def summed_gradient(observation: Observation, names: Sequence[str]) -> Mapping[str, Tensor]:
    """Sum of all steps' gradients of some parameters, each step weighted alike for all parameters, up to a factor.

    Local steps of SGD from w end at ``k w - sum over steps of c g``, with one k and one c a step for all parameters:
    k is 1 without weight decay, and follows from learning rate, momentum, weight decay and the number of steps.
    """
    update = {name: observation.update[name] for name in names}
    protocol, steps = observation.protocol, steps_behind(observation)
    if observation.kind == "gradient" or not protocol.weight_decay:
        return update
    kept, velocity = 1.0, 0.0
    for _ in range(steps or 1):
        velocity = (protocol.momentum or 0.0) * velocity + protocol.weight_decay * kept
        kept -= (protocol.learning_rate or 0.0) * velocity
    return {
        name: value.double() - (kept - 1.0) * observation.parameters[name].double() for name, value in update.items()
    }


def _structure(victim: Victim) -> tuple[PatchLayer, PositionEmbedding] | Reason:
    layer = patch_layer(victim, trace(victim))
    if isinstance(layer, Reason):
        return layer
    positions = position_embedding(victim, layer)
    return positions if isinstance(positions, Reason) else (layer, positions)


def _why_no_sum(observation: Observation) -> Reason | None:
    """Why the update is no sum of gradients, or None when nothing announced speaks against it."""
    protocol = observation.protocol
    if observation.kind == "gradient":
        return None
    if protocol.optimiser == "adam":
        return because("local-adam")
    if protocol.weight_decay and protocol.learning_rate is None:
        return because("weight-decay")
    if protocol.weight_decay and protocol.local_epochs is not None and steps_behind(observation) is None:
        return because("weight-decay.several-steps")
    return None


def _why_not_one(solved: SolvedPatches, layer: PatchLayer, positions: PositionEmbedding) -> Reason | None:
    """Why an update of an unknown number of images is not of one, or None when it is."""
    if solved.unexplained is None:
        return because("batch-size-unknown.patches", width=layer.width, patches=len(layer.pixels))
    if solved.unexplained > ONE_IMAGE:
        return because("several-images.patches", positions=positions.name, name=layer.weight, share=solved.unexplained)
    return None
