"""First-layer inversion: one division gives the image when the first layer is fully connected and has a bias."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Generator, Tensor

from attacker.analytic.first_linear import PROBES, first_linear, why_dropped_before
from attacker.analytic.rank import numerical_rank, rank_words
from attacker.attacks.base import Attack, Outcome, Progress, Reconstruction
from attacker.attacks.best_match import replayed_distance
from attacker.attacks.defence_names import BOTTLENECKS, DROPOUT, SCALING
from attacker.attacks.known_labels import check_labels
from attacker.attacks.registration import register_attack
from attacker.gradients.observed import observed_gradient, why_not_one_step
from attacker.gradients.trace import Trace, trace
from attacker.labels import idlg_label
from attacker.reasons import Reason, because
from attacker.victim import Victim
from fl_precode.observation import Observation


@register_attack(
    "first-layer",
    title="first-layer inversion",
    description="division in the first layer: exact for one image when that layer is Linear with a bias",
    source="Phong et al., TIFS 2018",
    # All of them stand behind the first layer, or scale its gradient as a whole; Soteria may defend that one.
    answers=BOTTLENECKS | DROPOUT | SCALING,
    oblivious=True,
    rank=10,
    cost=2.0,
    exact=True,
    portfolio=1,
)
@dataclass(frozen=True, kw_only=True)
class FirstLayerInversion(Attack):
    """``x = dW_i / db_i`` for the row i with the largest ``|db_i|`` (Phong et al. 2017, TIFS 13(5)).

    Every row of a Linear layer's weight gradient is the layer's input times that row's bias gradient, whatever comes
    after the layer: a bottleneck behind it only rescales both sides of the quotient. Exact up to rounding; computed in
    float64 and returned in the observation's dtype, neither clamped nor refined.

    Fits one image, and a first layer that is Linear with bias and sees the flattened image itself, or after the model
    has normalised each pixel by constants of its own. Local training on
    that one image is as exact as a gradient, whatever the number of steps, the learning rate and the momentum: every
    step changes row i by the image times a number, and its bias by that number. Weight decay adds the weights
    themselves; it is taken back for one step of announced learning rate, and is taken as absent when not announced.

    The matching loss is measured where the client's work can be replayed: for deterministic models (behind a bottleneck
    the client's noise is unknown, and a replay would say nothing about the image) and announced local steps.
    """

    @property
    def name(self) -> str:
        """Name in the registry."""
        return "first-layer"

    def refuses(self, victim: Victim, observation: Observation) -> Reason | None:
        """Reason why the attack cannot fit the observation, or None when it can."""
        if observation.batch_size is not None and observation.batch_size != 1:
            return because("several-images.first-layer", size=observation.batch_size)
        if observation.kind == "weights" and observation.protocol.optimiser == "adam":
            return because("local-adam.quotient")
        if observation.protocol.weight_decay and why_not_one_step(observation) is not None:
            return because("weight-decay.several-steps")
        model_trace = trace(victim, batch_size=PROBES)
        layer = first_linear(model_trace)
        if isinstance(layer, Reason):
            return layer
        if dropped := why_dropped_before(victim, model_trace, layer):
            return dropped
        if not bool((observation.update[layer.bias] != 0).any()):
            return because("gradient-is-zero.first-layer", name=layer.bias)
        if observation.batch_size is None:
            rank = numerical_rank(observation.update[layer.weight])
            if rank != 1:
                return because("several-images.rank", name=layer.weight, rank=rank_words(rank))
        return None

    def run(
        self,
        victim: Victim,
        observations: Sequence[Observation],
        labels: Sequence[Tensor | None],
        generators: Sequence[Generator],
        progress: Progress | None,
    ) -> list[Reconstruction]:
        """One division for each observation; consumes no randomness."""
        if not observations:
            return []
        model_trace = trace(victim, batch_size=PROBES)
        results = []
        for index, (observation, granted) in enumerate(zip(observations, labels, strict=True)):
            results.append(_invert(victim, model_trace, observation, granted))
            if progress is not None:
                progress((index + 1) / len(observations), None)
        return results


def _invert(victim: Victim, model_trace: Trace, observation: Observation, granted: Tensor | None) -> Reconstruction:
    began = time.perf_counter()
    layer = first_linear(model_trace)
    assert not isinstance(layer, Reason)
    gradient = observed_gradient(observation)
    labels: Tensor | None = None
    if granted is not None:
        labels = check_labels(granted, batch_size=1, classes=victim.label_numbers)
    elif victim.minimises_cross_entropy:
        labels = idlg_label(model_trace.last_linear(), gradient, classes=victim.inputs.classes)
    weight, bias = gradient[layer.weight].double(), gradient[layer.bias].double()
    row = int(bias.abs().argmax())
    inputs = layer.images((weight[row] / bias[row])[None], victim).to(gradient[layer.weight].dtype)
    if not bool(inputs.isfinite().all()):
        return Reconstruction(
            inputs=None, labels=labels, outcome=Outcome.DIVERGED, reason=because("image-not-finite.quotient")
        )
    matching = None if labels is None else replayed_distance(victim, model_trace, observation, inputs, labels)
    return Reconstruction(
        inputs=inputs,
        labels=labels,
        outcome=Outcome.CONVERGED,
        matching_loss=matching,
        seconds=time.perf_counter() - began,
    )
