"""PRECODE with partial perturbation: noise where the bottleneck leaves gradients (nearly) as they were."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from fl_precode.defences.on_gradients import Batch, GradientDefence, check_std, normal_like
from fl_precode.objective import training_loss
from fl_precode.observation import Gradients
from fl_precode.randomness.entropy import unforeseeable
from fl_precode.randomness.random_layers import Bottleneck
from fl_precode.randomness.seeding import seeded

_DRAWS = 8
"""Gradients that PartialNoise compares, in 28 pairs."""


def batch_needed(defence: str, model: nn.Module | None, batch: Batch | None) -> tuple[nn.Module, Batch]:
    """Both, or an error.

    Raises:
        ValueError: If one is missing.
    """
    if model is None or batch is None:
        raise ValueError(
            f"{defence} looks at the model and the batch, which are not at hand here (a Flower mod sees messages "
            "only); call fl_precode.defences.gradient_defence(...) in the training function"
        )
    return model, batch


def drawing_from(generator: Generator | None) -> AbstractContextManager[None]:
    """Everything random of the model inside the block comes from the generator; from the system where it is None."""
    return unforeseeable() if generator is None else seeded(fresh_seed(generator))


def fresh_seed(generator: Generator) -> int:
    """A seed for torch's global generators, drawn from a generator."""
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))


def gradient_stochasticity(
    model: nn.Module,
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor],
    batch: Batch,
    *,
    draws: int = _DRAWS,
    generator: Generator | None = None,
) -> dict[str, float]:
    """How much of each parameter's gradient survives a fresh draw of the model's noise.

    Args:
        model: With random layers (bottleneck, dropout). Used in a copy, in training mode; left as it is.
        loss: Loss of (model, inputs, labels), a scalar, such as `fl_precode.objective.training_loss`.
        batch: Inputs and labels.
        draws: Gradients to compare, at least 2.
        generator: Source of the noise; None for the operating system.

    Returns:
        Parameter name to the mean cosine between the gradients of two independent draws: 1 for a gradient that the
        noise does not touch (a gradient that is always zero, too), near 0 for one that is noise.

    Raises:
        ValueError: If there are fewer than two draws.
    """
    if draws < 2:
        raise ValueError(f"expected at least 2 draws to compare, got {draws}")
    trial = copy.deepcopy(model).train()
    named = {name: parameter for name, parameter in trial.named_parameters() if parameter.requires_grad}
    sums = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    zeros = dict.fromkeys(named, 0)
    with drawing_from(generator):
        for _ in range(draws):
            gradients = torch.autograd.grad(loss(trial, *batch), list(named.values()), allow_unused=True)
            for (name, total), gradient in zip(sums.items(), gradients, strict=True):
                norm = 0.0 if gradient is None else float(gradient.norm())
                if gradient is None or norm == 0:
                    zeros[name] += 1
                else:
                    total += gradient / norm
    return {name: _mean_cosine(total, zeros[name], draws) for name, total in sums.items()}


def _mean_cosine(total: Tensor, zeros: int, draws: int) -> float:
    """Over all pairs, from the sum of the unit vectors: |sum|² counts each pair twice and each vector with itself."""
    others = draws - zeros
    pairs = float(total.double().square().sum()) - others
    return (pairs + zeros * (zeros - 1)) / (draws * (draws - 1))


@dataclass(frozen=True, kw_only=True)
class PartialNoise(GradientDefence):
    """PPP: Gaussian noise on the gradients that the model's bottleneck leaves (nearly) deterministic, and on no others.

    Scheliga, Mäder, Seeland: Combining Stochastic Defenses to Resist Gradient Inversion (arXiv 2208.04767). The paper
    perturbs the layers before the bottleneck. Here the parameters are chosen by measuring `gradient_stochasticity` on
    the client's batch: those whose gradients of independent draws have a mean cosine of at least ``threshold``. These
    are the layers before the bottleneck, its encoder, and the classifier's bias, whose gradient (from which labels are
    read) hardly depends on the noise.

    Attributes:
        std: Absolute standard deviation.
        threshold: Least mean cosine, from -1 to 1. 0.5: more of the gradient is signal than noise.
    """

    std: float
    threshold: float = 0.5
    needs_batch: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_std(self.std)
        if not -1 <= self.threshold <= 1:
            raise ValueError(f"expected a threshold (a cosine) from -1 to 1, got {self.threshold}")

    def __call__(
        self,
        gradients: Gradients,
        *,
        generator: Generator | None = None,
        model: nn.Module | None = None,
        batch: Batch | None = None,
    ) -> dict[str, Tensor]:
        """See `GradientDefence`."""
        model, batch = batch_needed("ppp", model, batch)
        cosines = gradient_stochasticity(model, training_loss, batch, generator=generator)
        return {
            name: value + self.std * normal_like(value, generator)
            if cosines.get(name, 1.0) >= self.threshold
            else value
            for name, value in gradients.items()
        }

    def check(self, model: nn.Module) -> None:
        """Refuse models without a bottleneck.

        Raises:
            ValueError: If there is none.
        """
        if not any(isinstance(module, Bottleneck) for module in model.modules()):
            raise ValueError("ppp needs a bottleneck in the model; use precode+ppp or cvb+ppp, or noise without one")
