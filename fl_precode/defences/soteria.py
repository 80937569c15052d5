"""Soteria: zero those columns of a fully connected layer's gradient that tell most about the input."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from fl_precode.defences.on_gradients import Batch, GradientDefence, check_share
from fl_precode.defences.ppp import batch_needed, drawing_from
from fl_precode.observation import Gradients
from fl_precode.randomness.random_layers import Bottleneck, track_kl

_PIECE = 64  # features whose derivatives are taken in one backward pass


@dataclass(frozen=True, kw_only=True)
class Soteria(GradientDefence):
    """Soteria (Sun et al., CVPR 2021, arXiv 2012.06043): perturbs the representation r that enters a Linear layer.

    Feature f gets the score ``|dr_f/dX| / |r_f|``, averaged over the batch; the lowest-scored features are those whose
    perturbation makes the input hardest to find. Their columns of the layer's weight gradient are set to zero. All
    other gradients stay as they are. (A feature that is zero for an image, such as behind a dead ReLU, scores zero
    there; its column has nothing from that image anyway.)

    It is defined for the gradient of a batch, so that in local training it acts on every step.

    Attributes:
        share: Share of the columns, at least 0 and less than 1; the paper's comparisons use 0.6 and more.
        layer: Dotted name of the Linear layer; the last one that runs by default.
    """

    share: float = 0.6
    layer: str | None = None
    per_step: ClassVar[bool] = True
    needs_batch: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_share(self.share)

    def __call__(
        self,
        gradients: Gradients,
        *,
        generator: Generator | None = None,
        model: nn.Module | None = None,
        batch: Batch | None = None,
    ) -> dict[str, Tensor]:
        """See `GradientDefence`."""
        model, (inputs, _) = batch_needed("soteria", model, batch)
        with drawing_from(generator):
            name, scores = representation_scores(model, inputs, self.layer)
        weight = f"{name}.weight"
        columns = scores.argsort(stable=True)[: round(self.share * len(scores))]
        masked = gradients[weight].clone()
        masked[:, columns.to(masked.device)] = 0
        return {**gradients, weight: masked}

    def check(self, model: nn.Module) -> None:
        """Refuse models without the layer.

        Raises:
            ValueError: If there is none, or it is no Linear layer.
        """
        layers = _linear_layers(model)
        if self.layer is not None and self.layer not in layers:
            raise ValueError(
                f"soteria defends a torch.nn.Linear layer, and the model has none named {self.layer!r}; "
                f"it has {', '.join(layers) or 'none'}"
            )
        if not layers:
            raise ValueError("soteria defends a torch.nn.Linear layer, and the model has none; use prune or noise")


def representation_scores(model: nn.Module, inputs: Tensor, layer: str | None = None) -> tuple[str, Tensor]:
    """Soteria's score of every feature that enters a Linear layer.

    Args:
        model: Used in a copy, in training mode.
        inputs: (batch, channels, height, width), floating point.
        layer: Dotted name of the layer; None for the last Linear layer that runs.

    Returns:
        The layer's name and its scores, (features,): ``|dr_f/dX| / |r_f|`` averaged over the batch.

    Raises:
        ValueError: If the layer does not run, or what enters it is not (batch, features).
    """
    trial = copy.deepcopy(model).train()
    entered: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            entered.pop(name, None)  # the last to run shall be the last of the dictionary
            entered[name] = args[0]

        return hook

    for name in _linear_layers(trial):
        trial.get_submodule(name).register_forward_pre_hook(keep(name))
    given = inputs.detach().clone().requires_grad_()
    with track_kl(), torch.enable_grad():
        trial(given)
    chosen = layer if layer is not None else next(reversed(entered), "")
    if chosen not in entered or entered[chosen].dim() != 2 or len(entered[chosen]) != len(inputs):
        raise ValueError(
            f"soteria: expected (batch, features) to enter the Linear layer {chosen!r}; name another with layer=, "
            f"one of: {', '.join(entered) or 'none ran'}"
        )
    representation = entered[chosen]
    sizes = _derivative_norms(representation, given) / representation.detach().abs()
    return chosen, torch.where(representation == 0, 0, sizes).mean(dim=0).detach()


def _linear_layers(model: nn.Module) -> list[str]:
    """Names of the Linear layers that are no bottleneck's own."""
    inner = {child for module in model.modules() if isinstance(module, Bottleneck) for child in module.modules()}
    return [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and m not in inner]


def _derivative_norms(representation: Tensor, given: Tensor) -> Tensor:
    """|dr_f/dX| for each example and feature: (batch, features)."""
    batch, features = representation.shape
    norms = []
    for start in range(0, features, _PIECE):
        picks = torch.eye(features, dtype=representation.dtype, device=representation.device)[start : start + _PIECE]
        (slopes,) = torch.autograd.grad(
            representation,
            given,
            grad_outputs=picks.unsqueeze(1).expand(-1, batch, -1),
            is_grads_batched=True,
            retain_graph=True,
        )
        norms.append(slopes.flatten(2).norm(dim=2))  # (piece, batch)
    return torch.cat(norms).T
