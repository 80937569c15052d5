"""Check on an assumed loss: cross-entropy, where nobody named another, against the classifier's update.

Attacks that search replay cross-entropy. Under any loss that sees the class scores through a softmax, the gradient with
respect to the scores sums to zero over the classes, and so does that of the classifier. Binary cross-entropy of each
class and squared errors have no such sum.
"""

from __future__ import annotations

import logging
from typing import Final, Literal

import torch
from torch import Tensor

from attacker.attacks.base import check_observation
from attacker.audit.inputs.defence_check import sightings
from attacker.audit.inputs.innocent_reasons import half_precision
from attacker.gradients.observed import steps_behind
from attacker.gradients.uncompared_parameters import settled
from attacker.labels.evidence import classifier_gradient
from attacker.victim import Victim
from fl_precode.assumption import Assumption
from fl_precode.defences.registry import gradient_defence
from fl_precode.loss import described
from fl_precode.observation import CROSS_ENTROPY, Observation
from fl_precode.tape.optimiser_traces import optimiser_trace

_logger = logging.getLogger(__name__)

_ZERO: Final = 0.01
_NOT_ZERO: Final = 0.05
"""Norm of the sums over the classes, beside that of the sums of sizes."""

Sum = Literal["zero", "other", "smoothed", "not seen"]

_SEEN: Final[dict[Sum, str]] = {
    "zero": " The classifier's update sums to zero over the classes, as under every loss that looks through a softmax: "
    "cross-entropy, also with class weights or smoothed labels, and the focal loss.",
    "other": " But the classifier's update does not sum to zero over the classes, as it does under every loss that "
    "looks through a softmax: the clients minimise another one, such as binary cross-entropy of each class or a "
    "squared error, or a term beside it.",
    "smoothed": " But more classes are drawn upwards in the classifier's update than there are images: labels are "
    "smoothed or mixed.",
    "not seen": "",
}


_BY_NAME: Final = 'loss = "my_app.task:loss"  # a function of (scores, labels), importable where the audit runs'


def _replayed(victim: Victim) -> str:
    return "mean cross-entropy of the class scores" if victim.loss is None else repr(described(victim.loss))


def loss_assumed(victim: Victim, observation: Observation) -> Assumption | None:
    """That the clients' loss is taken to be cross-entropy of the class scores; None where it was announced.

    Nothing is assumed where no loss is replayed, and one logit has an assumption of its own (``loss-assumed-bce``).

    Args:
        victim: Public knowledge about the model.
        observation: One update.
    """
    announced = observation.protocol.loss
    if victim.form.one_logit or victim.why_no_loss is not None or announced == CROSS_ENTROPY:
        return None
    if victim.loss is not None and announced in (None, described(victim.loss)):
        return None
    if announced is not None:
        return Assumption(
            code="loss",
            sentence=f"The clients' loss is replayed as {_replayed(victim)}, although {announced!r} was announced, "
            "which names nothing that can be imported.",
            doubt="The announcement itself: gradients of another loss are matched by no image, so that searches fail.",
            line=_BY_NAME,
        )
    return Assumption(
        code="loss",
        sentence="The clients' loss is taken to be mean cross-entropy of the class scores, because nobody said what "
        f"they minimise.{_SEEN[_seen(victim, observation)]}",
        doubt="Clients that minimise another loss (label smoothing, focal, class weights, a squared error, auxiliary "
        "heads) give gradients that no image matches, so that searches fail for that reason alone.",
        line=f'loss = "{CROSS_ENTROPY}"  # or "my_app.task:loss", a function of (scores, labels)',
    )


def _seen(victim: Victim, observation: Observation) -> Sum:
    try:
        return _sum_over_classes(victim, observation)
    except ValueError:  # no classifier, or none that moved
        return "not seen"
    except Exception:  # models are foreign code, and updates are whatever clients sent
        _logger.warning("what an update shows of the loss could not be looked at", exc_info=True)
        return "not seen"


def _sum_over_classes(victim: Victim, observation: Observation) -> Sum:
    if check_observation(victim, observation) is not None:
        return "not seen"
    whole = victim, observation
    victim, observation = settled(victim, observation)
    classifier = classifier_gradient(victim, observation)
    prefix = f"{classifier.layer.name}." if classifier.layer.name else ""
    names = [name for name in (f"{prefix}weight", f"{prefix}bias") if name in classifier.gradient]
    if not names or classifier.silent or not _sums_to_zero_here(victim, names):
        return "not seen"
    changes = torch.cat([_by_class(observation.update[name]) for name in names], dim=1)
    weights = torch.cat([_by_class(observation.parameters[name]) for name in names], dim=1)
    kind = _relative_sum(changes, weights, observation)
    if kind == "zero" and classifier.bias is not None and steps_behind(observation) == 1 and observation.batch_size:
        upwards = int((classifier.bias < -1e-3 * classifier.bias.abs().max()).sum())
        kind = "smoothed" if upwards > observation.batch_size else "zero"
    return kind if kind in ("zero", "not seen") or not _changed_by_entry(*whole) else "not seen"


def _changed_by_entry(victim: Victim, observation: Observation) -> bool:
    """Whether entries may have been changed one by one, after which they sum to anything."""
    announced = observation.protocol.defence or "unknown"
    if announced != "unknown" and gradient_defence(announced) is not None:
        return True
    if observation.kind == "weights":
        steps = steps_behind(observation)
        trace = optimiser_trace(observation.update, steps=steps, learning_rate=None)
        if observation.protocol.optimiser == "adam" or (trace is not None and trace.optimiser == "adam"):
            return True
    return any(sighting.sentence.code != "innocent-rest" for sighting in sightings(victim, observation, "none"))


def _sums_to_zero_here(victim: Victim, names: list[str]) -> bool:
    """Whether cross-entropy sums to zero at this classifier: not where something else stands behind it."""
    named = dict(victim.model.named_parameters())
    chosen = [named[name] for name in names if name in named]
    like = chosen[0]
    images = torch.randn((2, *victim.inputs.shape), generator=torch.Generator().manual_seed(0)).to(like)
    labels = torch.arange(2, device=like.device) % victim.inputs.classes
    with torch.enable_grad():
        gradients = torch.autograd.grad(victim.training_loss(images, labels), chosen)
    flat = torch.cat([_by_class(gradient) for gradient in gradients], dim=1)
    return bool(flat.sum(dim=0).norm() <= _ZERO * flat.abs().sum(dim=0).norm()) and bool(flat.any())


def _relative_sum(changes: Tensor, weights: Tensor, observation: Observation) -> Sum:
    sums, sizes = changes.sum(dim=0), changes.abs().sum(dim=0).norm()
    along = weights.sum(dim=0)
    left = sums - (sums @ along) / along.square().sum().clamp_min(1e-300) * along  # weight decay sums to this
    grid = half_precision(observation)
    kind = torch.float32 if grid is None else grid[0]
    rounding = 4 * torch.finfo(kind).eps * float(weights.abs().max()) * changes.numel() ** 0.5
    if observation.kind == "gradient":
        rounding = 0.0
    if float(left.norm()) <= _ZERO * float(sizes) + rounding:
        return "zero"
    return "other" if float(left.norm()) > _NOT_ZERO * float(sizes) + 10 * rounding else "not seen"


def _by_class(value: Tensor) -> Tensor:
    return value.detach().double().reshape(len(value), -1)
