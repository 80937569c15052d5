"""Defences on gradients and updates that need nothing else: noise, pruning, clipping, quantisation, sign.

Each is a pure function of what it is given and of a generator; names, shapes and dtypes stay as they are.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from fl_precode.observation import Gradients
from fl_precode.randomness.entropy import system_normal, system_uniform

Batch = tuple[Tensor, Tensor]
"""Normalised inputs (batch, channels, height, width) and class indices (batch,)."""


class GradientDefence(ABC):
    """Changes a gradient, or the update of local training, before it leaves the client.

    Attributes:
        per_step: Whether it belongs to each step of local training (it is defined for the gradient of one batch), and
            not to the finished update.
        needs_batch: Whether it looks at the model and the batch.
    """

    per_step: ClassVar[bool] = False
    needs_batch: ClassVar[bool] = False

    @abstractmethod
    def __call__(
        self,
        gradients: Gradients,
        *,
        generator: Generator | None = None,
        model: nn.Module | None = None,
        batch: Batch | None = None,
    ) -> dict[str, Tensor]:
        """Return the defended gradients; the arguments stay as they are.

        Args:
            gradients: Parameter name to gradient or update.
            generator: Source of everything random, on the CPU. None, for whoever wants to be protected: the operating
                system, whose numbers nobody can draw again. A generator is for tests and repeatable experiments.
            model: The client's model at the weights that the gradient belongs to (for an update: the received ones).
            batch: What the gradient was computed on (for an update: the first batch of the round).

        Raises:
            ValueError: If it needs a model and a batch and has none.
        """

    def check(self, model: nn.Module) -> None:
        """Refuse models that cannot have this defence, before anything is trained.

        Raises:
            ValueError: Naming what does not fit, with advice.
        """
        del model


def normal_like(value: Tensor, generator: Generator | None) -> Tensor:
    """Standard normal noise in the shape, dtype and device of ``value``; the same numbers on every device."""
    if generator is None:
        return system_normal(value.shape).to(value)
    drawn = torch.randn(value.shape, generator=generator, dtype=_drawing_dtype(value), device=generator.device)
    return drawn.to(value)


def _uniform_like(value: Tensor, generator: Generator | None) -> Tensor:
    """Numbers from 0 to 1 on the generator's device, in the type that is drawn in."""
    if generator is None:
        return system_uniform(value.shape).to(_drawing_dtype(value))
    return torch.rand(value.shape, generator=generator, dtype=_drawing_dtype(value), device=generator.device)


def _drawing_dtype(value: Tensor) -> torch.dtype:
    return torch.float64 if value.dtype == torch.float64 else torch.float32


def check_std(std: float) -> None:
    """Refuse a standard deviation that is not positive and finite.

    Raises:
        ValueError: If it is not.
    """
    if not 0 < std < math.inf:
        raise ValueError(f"expected a positive, finite std, got {std}")


@dataclass(frozen=True, kw_only=True)
class GaussianNoise(GradientDefence):
    """Independent N(0, std²) on every number (Zhu et al., DLG, NeurIPS 2019, section 5.1).

    No differential privacy by itself: nothing bounds what one example contributes.

    Attributes:
        std: Absolute, in the gradient's own units.
    """

    std: float

    def __post_init__(self) -> None:
        check_std(self.std)

    def __call__(
        self,
        gradients: Gradients,
        *,
        generator: Generator | None = None,
        model: nn.Module | None = None,
        batch: Batch | None = None,
    ) -> dict[str, Tensor]:
        """See `GradientDefence`."""
        return {name: value + self.std * normal_like(value, generator) for name, value in gradients.items()}


@dataclass(frozen=True, kw_only=True)
class LaplaceNoise(GradientDefence):
    """Independent Laplace noise on every number (Zhu et al., DLG, NeurIPS 2019, section 5.1).

    Attributes:
        std: Absolute standard deviation; the distribution's scale is std / sqrt(2).
    """

    std: float

    def __post_init__(self) -> None:
        check_std(self.std)

    def __call__(
        self,
        gradients: Gradients,
        *,
        generator: Generator | None = None,
        model: nn.Module | None = None,
        batch: Batch | None = None,
    ) -> dict[str, Tensor]:
        """See `GradientDefence`."""
        scale = self.std / math.sqrt(2)
        return {name: value + scale * _laplace_like(value, generator) for name, value in gradients.items()}


def _laplace_like(value: Tensor, generator: Generator | None) -> Tensor:
    """Laplace noise of scale 1: the difference of two exponential variables, finite for every draw."""
    if generator is None:
        drawn = -system_uniform((2, *value.shape)).log()
        return (drawn[0] - drawn[1]).to(value)
    both = torch.empty((2, *value.shape), dtype=_drawing_dtype(value), device=generator.device)
    both.exponential_(generator=generator)
    return (both[0] - both[1]).to(value)


@dataclass(frozen=True, kw_only=True)
class Prune(GradientDefence):
    """Sets the smallest numbers of each tensor to zero (gradient compression: Lin et al. 2018; DLG, section 5.2).

    Attributes:
        share: Share of the numbers in each tensor, at least 0 and less than 1; ``round(share * n)`` of n become zero.
    """

    share: float

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
        return {name: self._pruned(value) for name, value in gradients.items()}

    def _pruned(self, value: Tensor) -> Tensor:
        smallest = value.abs().flatten().argsort(stable=True)[: round(self.share * value.numel())]
        flat = value.flatten().clone()
        flat[smallest] = 0
        return flat.reshape(value.shape)


def check_share(share: float) -> None:
    """Refuse a share outside [0, 1).

    Raises:
        ValueError: If it is outside.
    """
    if not 0 <= share < 1:
        raise ValueError(f"expected a share of at least 0 and less than 1, got {share}")


@dataclass(frozen=True, kw_only=True)
class Clip(GradientDefence):
    """Scales the whole update down to a largest L2 norm.

    This bounds what a *client* sends, not what an example contributes, and adds no noise: it is no differential
    privacy. Gradient matching by cosine does not even notice it.

    Attributes:
        max_norm: Largest L2 norm over all tensors together, positive.
    """

    max_norm: float

    def __post_init__(self) -> None:
        check_max_norm(self.max_norm)

    def __call__(
        self,
        gradients: Gradients,
        *,
        generator: Generator | None = None,
        model: nn.Module | None = None,
        batch: Batch | None = None,
    ) -> dict[str, Tensor]:
        """See `GradientDefence`."""
        norm = math.sqrt(sum(float(value.double().square().sum()) for value in gradients.values()))
        factor = min(1.0, self.max_norm / norm) if norm > 0 else 1.0
        return {name: value * factor for name, value in gradients.items()}


def check_max_norm(max_norm: float) -> None:
    """Refuse a norm that is not positive and finite.

    Raises:
        ValueError: If it is not.
    """
    if not 0 < max_norm < math.inf:
        raise ValueError(f"expected a positive, finite max_norm, got {max_norm}")


@dataclass(frozen=True, kw_only=True)
class Quantise(GradientDefence):
    """Rounds each tensor to 2^bits - 1 evenly spaced values, at random so that the mean stays (Alistarh et al. 2017).

    The values lie between the largest magnitude and its negative. What is sent keeps its dtype, so that the message
    is not smaller; it holds that few different numbers.

    Attributes:
        bits: For each number, from 2 to 16.
    """

    bits: int

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise ValueError(f"expected 2 to 16 bits, got {self.bits}; for a single bit use the defence 'sign'")

    def __call__(
        self,
        gradients: Gradients,
        *,
        generator: Generator | None = None,
        model: nn.Module | None = None,
        batch: Batch | None = None,
    ) -> dict[str, Tensor]:
        """See `GradientDefence`."""
        return {name: self._rounded(value, generator) for name, value in gradients.items()}

    @property
    def levels(self) -> int:
        """Steps between zero and the largest magnitude."""
        return int(2 ** (self.bits - 1) - 1)

    def _rounded(self, value: Tensor, generator: Generator | None) -> Tensor:
        levels = self.levels
        drawn = _uniform_like(value, generator)
        exact = value.to(drawn.dtype)
        step = exact.abs().max() / levels if exact.numel() else exact.sum()
        if float(step) == 0:
            return value.clone()
        return ((exact / step + drawn.to(value.device)).floor().clamp(-levels, levels) * step).to(value.dtype)


@dataclass(frozen=True, kw_only=True)
class Sign(GradientDefence):
    """Sends each number's sign times its tensor's mean magnitude (scaled signSGD, Karimireddy et al., ICML 2019).

    One bit for each number and one number for each tensor would do, but what is sent keeps its dtype. It saves traffic
    and is no privacy: signs alone determine images well.
    """

    def __call__(
        self,
        gradients: Gradients,
        *,
        generator: Generator | None = None,
        model: nn.Module | None = None,
        batch: Batch | None = None,
    ) -> dict[str, Tensor]:
        """See `GradientDefence`."""
        return {name: value.sign() * value.abs().mean() for name, value in gradients.items()}
