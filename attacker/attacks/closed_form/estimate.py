"""Common part of the analytic attacks: the updates that they fit, and the images that the layers' equations give."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacker.analytic.chain_residual import ChainReplay
from attacker.analytic.classifier_inputs import ClassifierInput, enter, enter_without_bias
from attacker.analytic.entry_layer import Entrance, entrance, has_gradient
from attacker.analytic.known_quantities import LayerReport, Leaked
from attacker.analytic.layer_inversion import invert_chain, memory_needed
from attacker.analytic.rank import numerical_rank, rank_words
from attacker.attacks.best_match import EXACT_BELOW
from attacker.gradients.client_mode import as_trained
from attacker.gradients.memory_budget import GIB, default_budget
from attacker.gradients.observed import observed_gradient, why_not_one_step, why_scale_unknown
from attacker.gradients.trace import trace
from attacker.labels import idlg_label
from attacker.optim.double_precision import precise
from attacker.reasons import Reason, because, joined
from attacker.victim import Victim
from fl_precode.observation import Gradients, Observation


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What the equations give for observations that were solved together.

    Attributes:
        indices: Which of the attack's observations these are.
        entrance: Where the model was entered.
        inputs: (v, channels, height, width), float64 where the device has it.
        labels: (1,) for each, None where the update does not say.
        reports: Reports of each layer, from the last to the first.
        replay: What compares images with the updates.
        distances: (v,), ``|g(x) - g*|^2 / |g*|^2`` over the layers of the chain.
        seconds: Wall time for each.
    """

    indices: Sequence[int]
    entrance: Entrance
    inputs: Tensor
    labels: Sequence[Tensor | None]
    reports: Sequence[LayerReport]
    replay: ChainReplay
    distances: Tensor
    seconds: float

    def determined(self, place: int) -> bool:
        """Whether every layer has as many equations as unknowns."""
        return not any(bool(report.deficient[place]) for report in self.reports)

    def exact(self, place: int) -> bool:
        """Whether the image is determined and gives the update."""
        return self.determined(place) and float(self.distances[place]) < EXACT_BELOW

    def words(self, place: int) -> Reason:
        """What a reader should know about one image; empty when it is exact."""
        reasons = []
        for report in self.reports:
            if bool(report.deficient[place]):
                rank = int(report.rank_bound[place])
                reasons.append(because("rank-deficient", name=report.name, rank=rank, unknowns=report.unknowns))
            if int(report.clipped[place]):
                reasons.append(because("saturated-left-out", count=int(report.clipped[place]), name=report.name))
        if reasons or not self.exact(place):
            residuals = ", ".join(f"{layer.name} {float(layer.residuals[place]):.1e}" for layer in self.reports)
            reasons.append(because("residuals", residuals=residuals or "none"))
        return joined(reasons)


def why_not_invertible(victim: Victim, observation: Observation, *, through_bottleneck: bool = False) -> Reason | None:
    """Why the equations of the layers cannot be set up for an observation, or None when they can."""
    if observation.batch_size not in (None, 1):
        return because("several-images", size=observation.batch_size)
    reason = why_not_one_step(observation)
    if reason is not None:
        return reason
    (clients,) = as_trained(victim, [observation])
    place = entrance(clients.victim, through_bottleneck=through_bottleneck)
    if isinstance(place, Reason):
        return place
    if place.bias is None and (unknown := why_scale_unknown(observation)) is not None:
        return because("scale-needed.classifier", why=unknown)
    missing = [name for name in place.buffers if name not in clients.observations[0].buffers]
    if missing:
        return because("buffers-missing", names=missing[:4], name=place.weight)
    gradient = observed_gradient(clients.observations[0])
    if not has_gradient(place, gradient):
        return because("gradient-is-zero", name=place.bias or place.weight)
    if observation.batch_size is None:
        rank = numerical_rank(gradient[place.weight])
        if rank != 1:
            return because("several-images.rank", name=place.weight, rank=rank_words(rank))
    needed, budget = memory_needed(place.steps), default_budget(gradient[place.weight].device)
    if needed > budget:
        return because("out-of-memory.equations", needed=needed / GIB, budget=budget / GIB)
    return None


def any_entrance(victim: Victim, observation: Observation) -> tuple[bool, Reason | None]:
    """Whether an update is entered at a bottleneck's encoder, and why it cannot be entered anywhere."""
    reason = why_not_invertible(victim, observation)
    if reason is None or not trace(victim).bottlenecks:
        return False, reason
    return True, why_not_invertible(victim, observation, through_bottleneck=True)


def estimates(
    victim: Victim,
    observations: Sequence[Observation],
    *,
    through_bottleneck: bool = False,
    together: int | None = None,
) -> list[Estimate]:
    """Solve the equations for observations that `why_not_invertible` lets pass, as many at once as memory holds.

    Args:
        victim: Public knowledge about the model.
        observations: Updates.
        through_bottleneck: Where they are entered.
        together: Maximum number at once.
    """
    solutions = []
    for clients in as_trained(victim, observations) if observations else ():
        place = entrance(clients.victim, through_bottleneck=through_bottleneck)
        assert not isinstance(place, Reason)
        device = next(iter(clients.observations[0].parameters.values())).device
        fit = max(1, default_budget(device) // max(1, memory_needed(place.steps)))
        size = min(fit, together or fit)
        for first in range(0, len(clients.indices), size):
            indices = clients.indices[first : first + size]
            part = clients.observations[first : first + size]
            solutions.append(_estimate(clients.victim, place, indices, part))
    return solutions


def _estimate(victim: Victim, place: Entrance, indices: Sequence[int], observations: Sequence[Observation]) -> Estimate:
    began = time.perf_counter()
    gradients = [observed_gradient(update) for update in observations]
    entries: list[ClassifierInput] = []
    labels: list[Tensor | None] = []
    classifier = trace(victim).last_linear()
    for observation, gradient in zip(observations, gradients, strict=True):
        weight = precise(observation.parameters[place.weight])
        weight_gradient = precise(gradient[place.weight])
        if place.bias is None:
            constant = None if place.constant is None else precise(observation.buffers[place.constant])
            label, candidates = enter_without_bias(weight, weight_gradient, constant)
            entries.append(
                candidates[0]
                if candidates
                else enter(weight, weight_gradient, torch.linalg.svd(weight_gradient)[0][:, 0])
            )
            labels.append(torch.tensor([label], device=weight_gradient.device))
        else:
            entries.append(enter(weight, weight_gradient, precise(gradient[place.bias])))
            known = victim.minimises_cross_entropy
            labels.append(idlg_label(classifier, gradient, classes=victim.inputs.classes) if known else None)
    leaked = _leaked(place, observations, gradients, entries)
    solved = invert_chain(place.steps, leaked)
    steepness = torch.stack([entry.delta.norm() for entry in entries])
    replay = ChainReplay(steps=place.steps, leaked=leaked, factors=solved.factors, steepness=steepness)
    inputs = solved.inputs.reshape(len(entries), *victim.inputs.shape)
    return Estimate(
        indices=indices,
        entrance=place,
        inputs=inputs,
        labels=labels,
        reports=solved.reports,
        replay=replay,
        distances=replay.distances(inputs),
        seconds=(time.perf_counter() - began) / len(entries),
    )


def _leaked(
    place: Entrance,
    observations: Sequence[Observation],
    gradients: Sequence[Gradients],
    entries: Sequence[ClassifierInput],
) -> Leaked:
    names = [name for name in place.parameters if name not in (place.weight, place.bias)]
    return Leaked(
        parameters={name: _stacked([observation.parameters for observation in observations], name) for name in names},
        gradients={name: torch.stack([precise(gradient[name]) for gradient in gradients]) for name in names},
        buffers={name: _stacked([observation.buffers for observation in observations], name) for name in place.buffers},
        features=torch.stack([entry.features for entry in entries]),
        gradient=torch.stack([entry.gradient for entry in entries]),
    )


def _stacked(tensors: Sequence[Mapping[str, Tensor]], name: str) -> Tensor:
    """(v, ...), or (1, ...) where all are the same."""
    first = tensors[0][name]
    if all(state[name] is first or torch.equal(state[name], first) for state in tensors):
        return precise(first).unsqueeze(0)
    return torch.stack([precise(state[name]) for state in tensors])
