"""What an update shows about labels: the gradient of the classifier, addressed by name."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacker.engine.observed import observed_gradient, why_not_one_step
from attacker.engine.products import precise
from attacker.engine.trace import LayerRun, trace
from attacker.victim import Victim
from fl_precode.observation import Gradients, Observation


@dataclass(frozen=True, kw_only=True)
class ClassifierGradient:
    """Gradient of the mean cross-entropy with respect to the last Linear layer, in float64 where the device has it.

    With softmax probabilities p, one-hot labels y and features h of B images, the bias gradient is the mean of
    ``p - y`` and the weight gradient the mean of ``(p - y) h^T``.

    Attributes:
        layer: The classifier as it ran.
        gradient: The whole update as a gradient, by parameter name.
        weight: (classes, features).
        bias: (classes,), or None when the classifier has none.
        scaled: Whether the size of the gradient is known, not only its direction.
    """

    layer: LayerRun
    gradient: Gradients
    weight: Tensor
    bias: Tensor | None
    scaled: bool

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.weight.shape[0]

    @property
    def row_sums(self) -> Tensor:
        """(classes,), r_c of LLG: each class's weight gradient summed over the features."""
        return self.weight.sum(dim=1)

    @property
    def per_class(self) -> Tensor:
        """(classes,): the bias gradient, or without a bias the row sums, right for features that are not negative."""
        return self.row_sums if self.bias is None else self.bias

    @property
    def silent(self) -> bool:
        """Whether the classifier's gradient is zero everywhere, so that nothing can be read from it."""
        return not bool((self.weight != 0).any()) and (self.bias is None or not bool((self.bias != 0).any()))


def classifier_gradient(victim: Victim, observation: Observation) -> ClassifierGradient:
    """The gradient of the Linear layer that runs last, whatever the order in which the parameters are registered.

    Args:
        victim: Public knowledge about the model.
        observation: A gradient, or the weights after one step of plain SGD.

    Returns:
        The classifier's gradient.

    Raises:
        ValueError: If no Linear layer with one output for each class runs last, its parameters are not in the update
            under its name, the update sums several local steps, or the classifier's gradient is not finite.
    """
    reason = why_not_one_step(observation)
    if reason is not None:
        raise ValueError(f"label recovery is {reason}")
    layer = trace(victim).last_linear()
    if layer is None or not isinstance(layer.module, nn.Linear) or layer.module.out_features != victim.inputs.classes:
        found = "there is none" if layer is None else f"{layer.name!r} is {layer.module}"
        raise ValueError(
            "labels are read from the gradient of a last Linear layer with one output for each of "
            f"{victim.inputs.classes} classes; in {victim.name!r} {found}"
        )
    gradient = observed_gradient(observation)
    prefix = f"{layer.name}." if layer.name else ""
    wanted = [f"{prefix}weight", *([f"{prefix}bias"] if layer.module.bias is not None else [])]
    values = [_finite(gradient, name) for name in wanted]
    return ClassifierGradient(
        layer=layer,
        gradient=gradient,
        weight=values[0],
        bias=values[1] if len(values) > 1 else None,
        scaled=observation.kind == "gradient" or observation.protocol.learning_rate is not None,
    )


def known_batch_size(observation: Observation, *, method: str) -> int:
    """Images behind the update.

    Raises:
        ValueError: If the protocol does not reveal it.
    """
    if observation.batch_size is None:
        raise ValueError(f"label recovery {method!r} needs the batch size, and the protocol does not reveal it")
    return observation.batch_size


def check_scaled(found: ClassifierGradient, *, method: str) -> None:
    """Refuse an update whose size is unknown.

    Raises:
        ValueError: If weights were sent and no learning rate was announced.
    """
    if not found.scaled:
        raise ValueError(
            f"label recovery {method!r} needs the size of the gradient: this update is a difference of weights, and no "
            "learning rate was announced. 'unique', 'yin', 'llg' and 'bias-corrected' need its direction only"
        )


def labels_from_counts(counts: Tensor) -> Tensor:
    """Images of each class, (classes,), as sorted labels, (batch,).

    >>> labels_from_counts(torch.tensor([2, 0, 1])).tolist()
    [0, 0, 2]
    """
    return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)


def _finite(gradient: Gradients, name: str) -> Tensor:
    if name not in gradient:
        raise ValueError(f"expected {name!r} of the classifier in the update (tied weights?); it has {list(gradient)}")
    if not bool(torch.isfinite(gradient[name]).all()):
        raise ValueError(f"expected finite numbers in {name!r} of the update, got NaN or infinity: no labels in it")
    return precise(gradient[name].detach())
