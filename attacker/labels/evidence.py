"""Evidence about labels in an update: the gradient of the classifier, addressed by name."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacker.gradients.observed import in_gradient_units, steps_behind, why_scale_unknown
from attacker.gradients.trace import LayerRun, trace
from attacker.optim.double_precision import precise
from attacker.reasons import Reason
from attacker.victim import Victim
from fl_precode.observation import Gradients, Observation

_ALTERED = 1e-3
"""Of the largest element: far above the rounding of float32, and below what noise or pruning that matters leaves."""


@dataclass(frozen=True, kw_only=True)
class ClassifierGradient:
    """Gradient of the mean cross-entropy with respect to the last Linear layer, in float64 where the device has it.

    With softmax probabilities p, one-hot labels y and features h of B images, the bias gradient is the mean of
    ``p - y`` and the weight gradient the mean of ``(p - y) h^T``. After several local steps of plain SGD it is the mean
    of the steps' gradients: the same mean over the images of all steps, where p and h belong to each step's weights.
    Momentum gives early steps more weight, and a smaller last batch its images: then the mean is a weighted one.

    Attributes:
        layer: The classifier as it ran.
        gradient: Weight and bias by parameter name.
        own_weight: (classes, features), or None when the classifier's weight did not move, its bias only.
        bias: (classes,), or None when the classifier has none, or pruning set all of it to zero.
        why_unscaled: Why only the direction of the gradient is known, or None when its size is known too.
        steps: Local steps behind it, 1 for a gradient; None when what was announced does not say.
    """

    layer: LayerRun
    gradient: Gradients
    own_weight: Tensor | None
    bias: Tensor | None
    why_unscaled: Reason | None
    steps: int | None

    @property
    def weight(self) -> Tensor:
        """(classes, features).

        Raises:
            ValueError: If the weight of the classifier is not in the update.
        """
        if self.own_weight is None:
            raise ValueError(f"the weight of the classifier {self.layer.name!r} did not move, its bias only")
        return self.own_weight

    @property
    def classes(self) -> int:
        """Number of classes; one logit decides between two."""
        assert isinstance(self.layer.module, nn.Linear)
        return max(2, self.layer.module.out_features)

    @property
    def row_sums(self) -> Tensor:
        """(classes,), r_c of LLG: each class's weight gradient summed over the features."""
        return self.weight.sum(dim=1)

    @property
    def per_class(self) -> Tensor:
        """(classes,): the bias gradient, or without a bias the row sums, right for features that are not negative."""
        return self.row_sums if self.bias is None else self.bias

    @property
    def altered(self) -> bool:
        """Whether the gradient cannot be that of a softmax, whose bias, or rows, sum to zero over the classes."""
        values = self.own_weight if self.bias is None else self.bias
        if values is None:
            return False
        return float(values.sum(dim=0).abs().max()) > _ALTERED * float(values.abs().max())

    @property
    def silent(self) -> bool:
        """Whether the classifier's gradient is zero everywhere, so that nothing can be read from it."""
        return not any(bool((value != 0).any()) for value in (self.own_weight, self.bias) if value is not None)


def classifier_gradient(victim: Victim, observation: Observation) -> ClassifierGradient:
    """The gradient of the Linear layer that runs last, whatever the order in which the parameters are registered.

    Args:
        victim: Public knowledge about the model.
        observation: A gradient, or the weights after one or more steps of SGD; one where nothing is announced.

    Returns:
        The classifier's gradient, of several steps their mean.

    Raises:
        ValueError: If the clients minimise another loss than cross-entropy, no Linear layer with one output for each
            class runs last, its parameters are not in the update under its name and in its shape, the classifier's
            gradient is not finite, the announced learning rate or number of steps cannot be, or weight decay is mixed
            in by an unknown share.
    """
    _check_protocol(observation)
    layer = trace(victim).last_linear()
    wanted = 1 if victim.form.one_logit else victim.inputs.classes
    if layer is None or not isinstance(layer.module, nn.Linear) or layer.module.out_features != wanted:
        actual = "there is none" if layer is None else f"{layer.name!r} is {layer.module}"
        raise ValueError(
            "labels are read from the gradient of a last Linear layer with one output for each of "
            f"{victim.inputs.classes} classes{' (or one logit)' if wanted == 1 else ''}; in {victim.name!r} {actual}"
        )
    if victim.why_no_loss is not None:
        raise ValueError(f"there are no labels in the update: {victim.why_no_loss}")
    if (other := victim.why_not_cross_entropy("label recovery")) is not None:
        raise ValueError(other)
    prefix = f"{layer.name}." if layer.name else ""
    parameters = {f"{prefix}weight": layer.module.weight, f"{prefix}bias": layer.module.bias}
    shapes = {name: value.shape for name, value in parameters.items() if value is not None}
    still = [name for name in shapes if name in observation.frozen]
    if len(still) == len(shapes):
        raise ValueError(f"the classifier {layer.name!r} did not move in this update, so that no label shows in it")
    shapes = {name: shape for name, shape in shapes.items() if name not in still}
    if f"{prefix}bias" in observation.update and f"{prefix}weight" not in observation.update:
        shapes.pop(f"{prefix}weight", None)  # tied, or computed anew from other parameters: the bias alone will do
    # The cast comes before the scale: a gradient in half precision is soon too large for it.
    gradient = {name: _finite(observation.update, name, shape) for name, shape in shapes.items()}
    if observation.kind == "weights":
        gradient = in_gradient_units(gradient, observation)
    return ClassifierGradient(
        layer=layer,
        gradient=gradient,
        own_weight=None if f"{prefix}weight" not in gradient else by_class(gradient[f"{prefix}weight"]),
        bias=None if _lost(gradient, prefix) else by_class(gradient[f"{prefix}bias"]),
        why_unscaled=why_scale_unknown(observation),
        steps=steps_behind(observation),
    )


def by_class(gradient: Tensor) -> Tensor:
    """The gradient of a classifier with one row for each class: of one logit f, that of the logits (0, f).

    ``softmax((0, f))`` is ``(1 - sigmoid(f), sigmoid(f))``, so that the row of the first class is minus that of the
    second, and all that holds for softmax holds for one logit under binary cross-entropy.

    Args:
        gradient: Gradient of a weight, (classes, features), or of a bias, (classes,); of one logit with a single row.

    >>> by_class(torch.tensor([0.25])).tolist()
    [-0.25, 0.25]
    """
    return torch.cat([-gradient, gradient]) if len(gradient) == 1 else gradient


def known_batch_size(observation: Observation, *, method: str) -> int:
    """Images behind the update, of all local steps together (`Observation.batch_size`).

    Raises:
        ValueError: If the protocol does not reveal it.
    """
    if observation.batch_size is None:
        raise ValueError(f"label recovery {method!r} needs the batch size, and the protocol does not reveal it")
    return observation.batch_size


def check_scaled(evidence: ClassifierGradient, *, method: str) -> None:
    """Refuse an update whose size is unknown.

    Raises:
        ValueError: If weights were sent, and the learning rate or the number of steps was not announced.
    """
    if evidence.why_unscaled is not None:
        raise ValueError(
            f"label recovery {method!r} needs the size of the gradient: this update is a difference of weights, and "
            f"{evidence.why_unscaled}. 'unique', 'yin', 'llg' and 'bias-corrected' need its direction only"
        )


def labels_from_counts(counts: Tensor) -> Tensor:
    """Images of each class, (classes,), as sorted labels, (batch,).

    >>> labels_from_counts(torch.tensor([2, 0, 1])).tolist()
    [0, 0, 2]
    """
    return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)


def _check_protocol(observation: Observation) -> None:
    """Refuse what cannot have been announced rightly, and updates that are no gradient at all."""
    protocol, rate = observation.protocol, observation.protocol.learning_rate
    if observation.kind == "gradient":
        return
    for name, number in (("steps", protocol.local_steps), ("epochs", protocol.local_epochs)):
        if number is not None and number < 1:
            raise ValueError(f"label recovery needs 1 or more local {name}, the protocol announces {number}")
    if rate is not None and not 0 < rate < math.inf:
        raise ValueError(f"label recovery needs a positive learning rate or none announced, the protocol says {rate}")
    unknown = why_scale_unknown(observation)
    if protocol.weight_decay and unknown is not None:
        raise ValueError(f"label recovery cannot take weight decay out of the update: {unknown}")


def _lost(gradient: Gradients, prefix: str) -> bool:
    """Whether there is no bias, or nothing of it while the weight moved: p - y of every class is never zero."""
    weight, bias = gradient.get(f"{prefix}weight"), gradient.get(f"{prefix}bias")
    if bias is None:
        return True
    return weight is not None and not bool((bias != 0).any()) and bool((weight != 0).any())


def _finite(update: Gradients, name: str, shape: torch.Size) -> Tensor:
    if name not in update:
        raise ValueError(f"expected {name!r} of the classifier in the update (tied weights?); it has {list(update)}")
    if update[name].shape != shape:
        raise ValueError(
            f"expected {name!r} of the update in the shape of the model's classifier, {tuple(shape)}, "
            f"got {tuple(update[name].shape)}: the update comes from another model"
        )
    if not bool(torch.isfinite(update[name]).all()):
        raise ValueError(f"expected finite numbers in {name!r} of the update, got NaN or infinity: no labels in it")
    return precise(update[name].detach())
