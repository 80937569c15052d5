"""Fit of a reconstruction to its update, and the best fit among several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from attacker.analytic.bottleneck_noise import recover_noise
from attacker.attacks.announced_update import announced_parts
from attacker.attacks.base import Outcome, Reconstruction
from attacker.attacks.defence_names import SCALING
from attacker.attacks.numbers_left import numbers_left
from attacker.gradients.base import GradientProducts
from attacker.gradients.client_mode import as_trained
from attacker.gradients.distances import Elements, cosine_distance
from attacker.gradients.double_backward import LoopProducts
from attacker.gradients.fedavg.local_training import why_not_unrolled
from attacker.gradients.fedavg.unrolled_sgd import LocalTrainingProducts
from attacker.gradients.noise_free_layers import before_noise
from attacker.gradients.observed import observed_gradient, why_not_one_step
from attacker.gradients.one_step import ElementwiseProducts
from attacker.gradients.replay import Replay
from attacker.gradients.trace import Trace
from attacker.reasons import because, coded, joined
from attacker.victim import Victim
from fl_precode.defences.in_model import ModelDefence
from fl_precode.defences.registry import DEFENCES, defence_parts
from fl_precode.observation import Observation

EXACT_BELOW = 1e-6
"""Cosine distance below which an analytic image counts as exact.

It confirms a formula: a relative error of the gradient of ``sqrt(2e-6)``, far above the rounding of a float32 update
(about 1e-13) and far below what a wrong label or another number of images leaves. It says nothing about searches: on
a sigmoid LeNet with PyTorch's initialisation images of 15 dB were measured to match to 3e-6, and of 25 dB to 6e-8.
"""

NOISE_DRAWS = 16
"""Draws of a bottleneck's noise that a distance is averaged over, the same ones for all results."""


_ZEROES = frozenset({"prune", "soteria", "percentile", "svt"})
"""Defences that replace parts of a gradient by zeros."""


class Contest:
    """Compares results of different attacks on one observation.

    Losses that attacks report are squared distances, cosines, or the smallest of many draws of noise. What is compared
    is therefore measured again for all of them: ``1 - cos(g(x), g*)`` over all parameters, without priors, at the
    images and labels that the attack returned, in float64 where the device and the model can: float32 rounds what is
    below 1e-9 away. Several local steps are unrolled for it where enough was announced; else, and behind a bottleneck,
    the update counts as one gradient. An analytic result below `EXACT_BELOW` decides at once.

    Behind a bottleneck the distance is over the parameters of layers that run before the first one, where there are
    any. The client's noise is recovered where that is possible (`attacker.analytic.bottleneck_noise`: one image, one
    step); at this noise the model is deterministic, and a small distance confirms analytic images as it does elsewhere.
    (Over all parameters, at the same noise, the bottleneck's own large matrices drown the others: images of SSIM .05
    came closer than 1e-3.) Else the smallest of many draws would reward the attack that drew most often, and the
    distance is the mean over the same `NOISE_DRAWS` draws for every result; over all parameters attacks that average
    over the noise were measured to beat the true image (docs/reference/attacks.md). It orders results, but is not small
    even for the true image and cannot confirm an analytic one; such an image is taken unconfirmed, because its formula
    holds whatever the noise was, and so is one whose labels are unknown. Formulas do not hold for gradients that were
    changed themselves: where a defence was announced that does so, their images compete with the others.

    Where the announced defence puts zeros in place of parts of one gradient, only what it kept is compared, and of
    what a filter kept only what it did not change (`attacker.attacks.numbers_left`).

    Args:
        victim: Public knowledge about the model.
        seen: A trace of the model.
        observation: What all results are of.
    """

    def __init__(self, victim: Victim, model_trace: Trace, observation: Observation) -> None:
        (clients,) = as_trained(victim, [observation])
        self._victim = clients.victim
        self._observation = numbers_left(clients.observations[0], announced_parts(observation))
        self._latents = model_trace.latents
        known = recover_noise(self._victim, self._observation, model_trace)
        self._noise = (
            [layer_noise for layer_noise in known.noise if layer_noise is not None] if known.complete else None
        )
        self._matched = before_noise(model_trace, encoder=False) or None
        announced = _announced(observation)
        self._zeroed = bool(announced & _ZEROES)
        self._intact = all(_leaves_direction(name) for name in announced)
        self._best: Reconstruction | None = None
        self._score = float("inf")
        self._failures: list[str] = []
        self._refusals: list[str] = []
        self._seconds = 0.0
        self._iterations = 0
        self._starts = 0
        self.decided = False
        self.distance: float | None = None

    def consider(self, method: str, result: Reconstruction) -> None:
        """Take in what one attack found, or why it found nothing."""
        self._seconds += result.seconds
        self._iterations += result.iterations
        self._starts += result.starts
        if result.inputs is None:
            kind = self._refusals if result.outcome is Outcome.NOT_APPLICABLE else self._failures
            kind.append(because("member", method=method, why=coded(result.reason)))
            return
        analytic = result.iterations == 0 and result.outcome is Outcome.CONVERGED
        try:
            unknown = self._latents and self._noise is None
            distance = None if analytic and unknown and self._intact else self._measured(result)
        except Exception as error:  # results of foreign attacks may be anything
            words = f"{type(error).__name__}: {error}"
            self._failures.append(because("member.not-replayed", method=method, error=words))
            return
        trusted = analytic and distance is None and self._intact
        score = -float("inf") if trusted else float("inf") if distance is None else distance
        if self._best is None or score < self._score:
            self._best, self._score, self.distance = replace(result, method=method), score, distance
        self.decided = trusted or (analytic and score < EXACT_BELOW)

    def result(self) -> Reconstruction:
        """The best result, with the work of all; what failed on the way is its reason."""
        best = self._best
        if best is None:
            outcome = Outcome.FAILED if self._failures else Outcome.NOT_APPLICABLE
            reasons = self._failures + self._refusals
            best = Reconstruction(inputs=None, labels=None, outcome=outcome)
        else:
            reasons = [best.reason] * bool(best.reason) + self._failures
        return replace(
            best,
            matching_loss=self.distance,
            reason=joined(reasons),
            seconds=self._seconds,
            iterations=self._iterations,
            starts=self._starts,
            starting_loss=None,  # the member measured it by another measure
        )

    def _measured(self, result: Reconstruction) -> float | None:
        """The distance, or None where there is none: labels are unknown, or it is not finite."""
        if result.inputs is None or result.labels is None:
            return None
        try:
            distance = self._distance(result.inputs.double(), result.labels)
        except (RuntimeError, TypeError):  # no float64 on this device, or in a constant of someone's model
            distance = self._distance(result.inputs, result.labels)
        return max(0.0, distance) if distance < float("inf") else None  # rounding may end below zero

    def _distance(self, inputs: Tensor, labels: Tensor) -> float:
        """In the dtype of ``inputs``."""

        def cast(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {
                name: value.to(inputs.dtype) if value.is_floating_point() else value for name, value in values.items()
            }

        observation = self._observation
        buffers = {**dict(self._victim.model.named_buffers()), **observation.buffers}
        replay = Replay(self._victim, cast(observation.parameters), cast(buffers))
        noise = self._noise_for(inputs)
        target = replace(observation, parameters=replay.parameters, update=cast(observation.update))
        products = _products(replay, target, noisy=bool(self._latents), zeroed=self._zeroed, matched=self._matched)
        return _mean_distance(products, inputs.detach(), labels, noise)

    def _noise_for(self, inputs: Tensor) -> list[Tensor]:
        """(1, draws, batch, ...) for each bottleneck: the client's own where it is known, else always the same."""
        if self._noise is not None:
            return [layer_noise.to(inputs)[None, None] for layer_noise in self._noise]
        generator = torch.Generator().manual_seed(0)
        shapes = [(1, NOISE_DRAWS, len(inputs), *latent) for latent in self._latents]
        return [torch.randn(shape, generator=generator, dtype=torch.float64).to(inputs) for shape in shapes]


def replayed_distance(
    victim: Victim, model_trace: Trace, observation: Observation, inputs: Tensor, labels: Tensor
) -> float | None:
    """``1 - cos(g(x), g*)`` over all parameters, or None where the client's work cannot be replayed.

    That is behind a bottleneck, whose noise is unknown, where too little was announced of several local steps, and
    where the model returns no class scores.

    Args:
        victim: Public knowledge about the model.
        model_trace: A trace of the model.
        observation: The update.
        inputs: (batch, channels, height, width), normalised.
        labels: (batch,), in the order of the images.
    """
    several = why_not_one_step(observation) is not None
    if (
        model_trace.bottlenecks
        or victim.why_no_loss is not None
        or (several and why_not_unrolled(observation) is not None)
    ):
        return None
    replay = Replay(victim, observation.parameters, observation.buffers)
    return max(0.0, _mean_distance(_products(replay, observation), inputs, labels))  # rounding may end below zero


def _mean_distance(products: GradientProducts, inputs: Tensor, labels: Tensor, noise: Sequence[Tensor] = ()) -> float:
    """The cosine distance of images (batch, ...), averaged over the draws of the noise, (1, draws, batch, ...)."""
    draws = noise[0].shape[1] if noise else 1
    candidates = inputs.expand(1, draws, *inputs.shape)
    with torch.no_grad():
        return float(cosine_distance(products(candidates, labels.to(inputs.device), noise)).mean())


def _products(
    replay: Replay,
    observation: Observation,
    *,
    noisy: bool = False,
    zeroed: bool = False,
    matched: frozenset[str] | None = None,
) -> GradientProducts:
    """The client's work replayed: its local steps where they can be unrolled, else one gradient.

    Args:
        replay: The victim's loss at the weights that were sent.
        observation: The update.
        noisy: Whether a bottleneck draws noise, behind which steps are not unrolled.
        zeroed: Whether only what the defence kept is compared.
        matched: Parameters that are compared; None for all.
    """
    several = why_not_one_step(observation) is not None and why_not_unrolled(observation) is None
    if several and not noisy:
        return LocalTrainingProducts(replay, [observation], vmapped=False)
    target = observed_gradient(observation)
    if zeroed:
        return ElementwiseProducts(replay, [target], elements=Elements(kept=True), at_once=False, matched=matched)
    return LoopProducts(replay, [target], matched=matched)


def _announced(observation: Observation) -> set[str]:
    """Names of the announced defence's parts; none where the announcement is in nobody's terms but the client's."""
    try:
        return {part.name for part in defence_parts(observation.protocol.defence or "none")}
    except ValueError:
        return set()


def _leaves_direction(defence: str) -> bool:
    """Whether a gradient under this defence is, but for a factor, that of some image."""
    known = DEFENCES.get(defence)
    return defence in SCALING or known is None or issubclass(known.settings, ModelDefence)
