"""DP-SGD's gradient and its epsilon, by Opacus (an optional dependency: ``pip install 'fl-precode[dp]'``)."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from fl_precode.objective import training_loss
from fl_precode.observation import Gradients
from fl_precode.perturb import Batch, GradientDefence, check_max_norm
from fl_precode.perturb_partly import batch_needed, fresh_seed
from fl_precode.seeding import seeded


def _opacus() -> ModuleType:
    try:
        import opacus
        import opacus.accountants
        import opacus.optimizers
        import opacus.validators
    except ImportError as error:
        raise ValueError(f"the defence dp needs Opacus ({error}); pip install 'fl-precode[dp]'") from error
    found: ModuleType = opacus
    return found


@dataclass(frozen=True, kw_only=True)
class DpSgd(GradientDefence):
    """The gradient of DP-SGD (Abadi et al. 2016) by Opacus: per-example clipping, then Gaussian noise.

    ``(sum_i g_i * min(1, C / (|g_i| + 1e-6)) + N(0, (sigma C)²)) / B`` for the B examples of a batch, where g_i is the
    gradient of example i over all parameters. (The 1e-6 is Opacus's.) The given gradient is not used: it is computed
    anew from model and batch, at the cost of a second pass and of B gradients in memory.

    The noise comes from an ordinary generator, so that runs can be repeated; whoever knows its seed can take it away.

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
        generator: Generator,
        model: nn.Module | None = None,
        batch: Batch | None = None,
    ) -> dict[str, Tensor]:
        """See `GradientDefence`."""
        model, (inputs, labels) = batch_needed("dp", model, batch)
        self.check(model)
        opacus = _opacus()
        trial = copy.deepcopy(model).train()
        watched = opacus.GradSampleModule(trial, loss_reduction="mean")
        with seeded(fresh_seed(generator)), warnings.catch_warnings():
            # Torch explains that the images themselves get no gradient, which nobody asked for.
            warnings.filterwarnings("ignore", "Full backward hook is firing")
            training_loss(watched, inputs, labels).backward()  # type: ignore[no-untyped-call]
        touched = _per_example(trial)
        optimiser = opacus.optimizers.DPOptimizer(
            torch.optim.SGD(touched, lr=1.0),
            noise_multiplier=self.noise_multiplier,
            max_grad_norm=self.max_norm,
            expected_batch_size=len(labels),
            generator=Generator(inputs.device).manual_seed(fresh_seed(generator)),
        )
        optimiser.pre_step()
        named = dict(trial.named_parameters())
        return {name: _gradient(named[name]) for name in gradients}

    def check(self, model: nn.Module) -> None:
        """Refuse models that Opacus cannot make private.

        Raises:
            ValueError: Naming the layers, or that Opacus is not installed.
        """
        opacus = _opacus()
        mixing = [n for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if mixing:
            raise ValueError(
                f"dp cannot work with batch normalisation ({_named(mixing)}): it mixes the examples of a batch, so "
                "that no gradient belongs to one of them. Use a model with group normalisation (torch.nn.GroupNorm)"
            )
        wrong = {name: module for name, module in model.named_modules() if _unsupported(opacus, module)}
        if wrong:
            kinds = sorted({type(module).__name__ for module in wrong.values()})
            places = [name or "the model itself" for name in wrong]
            raise ValueError(
                f"dp: Opacus does not support {', '.join(kinds)} ({_named(places)}); replace these layers, for "
                "instance by those of opacus.layers, or use another defence"
            )


def _per_example(trial: nn.Module) -> list[nn.Parameter]:
    """The parameters with per-example gradients, which must add up to the gradient that autograd found.

    Raises:
        ValueError: If they do not: then some of the gradient would leave the client neither clipped nor noised.
    """
    touched = []
    for name, parameter in trial.named_parameters():
        whole, each = parameter.grad, getattr(parameter, "grad_sample", None)
        if whole is None:
            continue
        found = torch.zeros_like(whole) if each is None else each.mean(dim=0)
        if float((found - whole).norm()) > 1e-3 * float(whole.norm()) + 1e-6:
            raise ValueError(
                f"dp: Opacus did not see all uses of the parameter {name!r} (does the model's code call the layer by "
                "torch.nn.functional, or take its weight?); call the layer as a module"
            )
        if each is not None:
            touched.append(parameter)
    return touched


def _gradient(parameter: nn.Parameter) -> Tensor:
    """What Opacus left; zero, noise-free, where the loss does not depend on the parameter at all."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach()


def _unsupported(opacus: ModuleType, module: nn.Module) -> bool:
    if not any(p.requires_grad for p in module.parameters(recurse=False)):
        return False
    if any(True for _ in module.children()) or any(True for _ in module.buffers(recurse=False)):
        # Opacus would run all of it again for each example, with other noise; buffers are not private.
        return True
    validate = opacus.validators.ModuleValidator.VALIDATORS.get(type(module))
    return bool(validate and validate(module))


def _named(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown


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
        ValueError: If a value is out of range, or Opacus is not installed.
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
    accountant = _opacus().accountants.RDPAccountant()
    accountant.history = [(noise_multiplier, sample_rate, steps)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Optimal order is the")  # looser at extremes, never wrong
        return float(accountant.get_epsilon(delta))
