"""DP-SGD's gradient, and its epsilon by Opacus's accountant (optional: ``pip install 'fl-precode[dp]'``).

The gradient is not Opacus's: its per-example gradients of convolutions are silently zero for images in channels-last
memory (opacus 1.6.0, ``unfold2d``), which one-channel images are, and with torch 2.15 its hooks refuse in-place
additions as in torchvision's ResNets. `torch.func` has neither trouble.
"""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call, grad, vmap

from fl_precode.defences.on_gradients import Batch, GradientDefence, check_max_norm, normal_like
from fl_precode.defences.ppp import batch_needed, drawing_from
from fl_precode.objective import training_loss
from fl_precode.observation import Gradients

_PIECE = 16  # examples whose gradients are in memory at once


@dataclass(frozen=True, kw_only=True)
class DpSgd(GradientDefence):
    """The gradient of DP-SGD (Abadi et al. 2016): per-example clipping, then Gaussian noise.

    ``(sum_i g_i / max(1, |g_i| / C) + N(0, (sigma C)²)) / B`` for the B examples of a batch, where g_i is the gradient
    of example i, alone, over all parameters. The given gradient is not used: it is computed anew from model and batch.

    Without a generator the noise comes from the operating system. With one a run can be repeated, by whoever knows its
    seed: they can take the noise away, and no epsilon holds against them.

    Attributes:
        max_norm: C, positive.
        noise_multiplier: sigma, at least 0; with 0 it clips only, and epsilon is infinite.
    """

    max_norm: float
    noise_multiplier: float
    per_step: ClassVar[bool] = True
    needs_batch: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_max_norm(self.max_norm)
        if not 0 <= self.noise_multiplier < math.inf:
            raise ValueError(f"expected a finite noise_multiplier of 0 or more, got {self.noise_multiplier}")

    def __call__(
        self,
        gradients: Gradients,
        *,
        generator: Generator | None = None,
        model: nn.Module | None = None,
        batch: Batch | None = None,
    ) -> dict[str, Tensor]:
        """See `GradientDefence`."""
        model, (inputs, labels) = batch_needed("dp", model, batch)
        self.check(model)
        with drawing_from(generator):
            total = self.clipped_sum(gradients, model, (inputs, labels))
        std = self.noise_multiplier * self.max_norm
        noisy = {name: value + std * normal_like(value, generator) for name, value in total.items()}
        return {name: value / len(labels) for name, value in noisy.items()}

    def clipped_sum(self, gradients: Gradients, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The sum of the examples' clipped gradients, before noise; drawn from torch's global generators."""
        inputs, labels = batch
        total = {name: torch.zeros_like(value) for name, value in gradients.items()}
        for start in range(0, len(labels), _PIECE):
            piece = slice(start, start + _PIECE)
            each = per_example_gradients(model, inputs[piece], labels[piece])
            norms = torch.stack([value.flatten(1).norm(dim=1) for value in each.values()]).norm(dim=0)
            kept = self.kept(norms)
            for name, value in each.items():
                total[name] += torch.einsum("b,b...->...", kept, value)
        return total

    def kept(self, norms: Tensor) -> Tensor:
        """What clipping leaves of gradients of these norms, as a factor of each."""
        kept: Tensor = 1 / (norms / self.max_norm).clamp(min=1)
        return kept

    def check(self, model: nn.Module) -> None:
        """Refuse models whose layers mix the examples of a batch, or keep sums over them.

        Raises:
            ValueError: Naming the layers.
        """
        mixing = [name for name, module in model.named_modules() if _mixes(module)]
        if mixing:
            shown = ", ".join(name or "the model itself" for name in mixing[:4])
            more = f" and {len(mixing) - 4} more" if len(mixing) > 4 else ""
            raise ValueError(
                f"dp cannot work with batch normalisation or running statistics ({shown}{more}): they mix the examples "
                "of a batch, so that no gradient belongs to one of them, and are sent without noise. Use a model with "
                "group normalisation (torch.nn.GroupNorm)"
            )


def _mixes(module: nn.Module) -> bool:
    running = isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.track_running_stats
    return running or isinstance(module, nn.modules.batchnorm._BatchNorm)


class _Loss(nn.Module):
    """The training loss of one example as a module, for `torch.func.functional_call`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, label: Tensor) -> Tensor:
        return training_loss(self.model, inputs.unsqueeze(0), label.unsqueeze(0))


def per_example_gradients(model: nn.Module, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The gradient of the training loss of each example alone, as if it were the whole batch.

    Args:
        model: Used in a copy, in training mode; each example draws noise of its own from torch's global generator.
        inputs: (batch, channels, height, width), normalised.
        labels: (batch,) class indices.

    Returns:
        Name of each trainable parameter to (batch, *shape); zeros where the loss does not depend on it.
    """
    loss = _Loss(copy.deepcopy(model).train())
    trainable = {name: p.detach() for name, p in loss.named_parameters() if p.requires_grad}

    def one(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        value: Tensor = functional_call(loss, parameters, (image, label))
        return value

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")
            each = vmap(grad(one), in_dims=(None, 0, 0), randomness="different")(trainable, inputs, labels)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # layers that vmap cannot batch, such as recurrent ones: one example after another
        rows = [grad(one)(trainable, image, label) for image, label in zip(inputs, labels, strict=True)]
        each = {name: torch.stack([row[name] for row in rows]) for name in trainable}
    return {name.removeprefix("model."): value for name, value in each.items()}


def dp_epsilon(*, noise_multiplier: float, sample_rate: float, steps: int, delta: float = 1e-5) -> float:
    """What DP-SGD spends, by Opacus's RDP accountant (Mironov et al. 2019).

    The bound is proved for batches drawn by Poisson sampling. With shuffled batches of fixed size, as here and in
    most of deep learning, it is the customary approximation and no proof.

    Args:
        noise_multiplier: sigma, at least 0.
        sample_rate: Chance of an example to be in a batch: batch size over the client's examples, in (0, 1].
        steps: Noisy gradients sent or applied, at least 0.
        delta: In (0, 1), smaller than one over the number of examples.

    Returns:
        epsilon for (epsilon, delta)-differential privacy of one example of a client; infinite without noise.

    Raises:
        ValueError: If a value is out of range.
        ModuleNotFoundError: If Opacus is not installed.
    """
    if not (0 < sample_rate <= 1 and steps >= 0 and 0 < delta < 1 and noise_multiplier >= 0):
        raise ValueError(
            "expected noise_multiplier >= 0, 0 < sample_rate <= 1, steps >= 0 and 0 < delta < 1, "
            f"got {noise_multiplier}, {sample_rate}, {steps}, {delta}"
        )
    if steps == 0:
        return 0.0
    if noise_multiplier == 0:
        return math.inf
    try:
        from opacus.accountants import RDPAccountant
    except ImportError as error:
        raise ModuleNotFoundError(f"epsilon needs Opacus ({error}); pip install 'fl-precode[dp]'") from error
    accountant = RDPAccountant()
    accountant.history = [(noise_multiplier, sample_rate, steps)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Optimal order is the")  # looser at extremes, never wrong
        return float(accountant.get_epsilon(delta))
