"""Common part of filters of deployed frameworks: they change a client's whole reply, in NumPy, with its draws."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from fl_precode.defences.on_gradients import Batch, GradientDefence
from fl_precode.observation import Gradients
from fl_precode.randomness.entropy import system_normal, system_uniform

Array = NDArray[Any]
"""One array of a reply."""

Record = Mapping[str, Array]
"""A reply's arrays by name, in the order in which they are sent: parameters, buffers and counters."""


class Draws(Protocol):
    """Where a filter's random numbers come from; `numpy.random.RandomState`, from which Flower's filters draw, is one.

    The arguments are those of NumPy, by position.
    """

    def normal(self, mean: float, std: float, size: Any, /) -> Any:
        """Normal numbers."""

    def laplace(self, mean: float, scale: float, size: Any, /) -> Any:
        """Laplace numbers."""

    def choice(self, among: Any, size: Any, /) -> Any:
        """Elements drawn with replacement."""


class SystemDraws:
    """Draws from the operating system, which nobody can repeat."""

    def normal(self, mean: float, std: float, size: Sequence[int], /) -> Array:
        """Normal numbers, float64."""
        return np.asarray(mean + std * system_normal(size).numpy())

    def laplace(self, mean: float, scale: float, size: Sequence[int], /) -> Array:
        """Laplace numbers, float64: differences of two exponential ones."""
        exponential = -system_uniform((2, *size)).log().numpy()
        return np.asarray(mean + scale * (exponential[0] - exponential[1]))

    def choice(self, among: Array, size: int, /) -> Array:
        """Elements drawn with replacement."""
        return among[(system_uniform((size,)).numpy() * len(among)).astype(np.int64)]


def draws_from(generator: Generator | None) -> Draws:
    """The system's draws without a generator, else NumPy's own from a seed that the generator gives."""
    if generator is None:
        return SystemDraws()
    seed = torch.randint(2**32, (1,), generator=generator, device=generator.device)
    draws: Draws = np.random.RandomState(int(seed))
    return draws


class UpdateFilter(GradientDefence):
    """A defence of the whole reply: every array of it, buffers and counters included, beside those that were received.

    A gradient is filtered as the reply of a client that received zeros.
    """

    @abstractmethod
    def filtered(self, received: Record, sent: Record, draws: Draws) -> dict[str, Array]:
        """What leaves the client in place of ``sent``; the arguments stay as they are.

        Args:
            received: What the client was sent.
            sent: What it would reply, under the same names and in the same shapes.
            draws: Source of everything random.

        Raises:
            ValueError: If it cannot filter this reply, with the reason.
        """

    def on_reply(
        self, received: Mapping[str, Tensor], sent: Mapping[str, Tensor], generator: Generator | None
    ) -> dict[str, Tensor]:
        """As `filtered`, of tensors; each is returned in its own dtype and on its own device."""
        if received.keys() != sent.keys():
            odd = sorted(received.keys() ^ sent.keys())
            raise ValueError(f"expected a reply under the names that were received; on one side only: {odd[:4]}")
        before = {name: _array(received[name]) for name in sent}
        left = self.filtered(before, {name: _array(value) for name, value in sent.items()}, draws_from(generator))
        return {name: torch.from_numpy(np.asarray(left[name])).to(value) for name, value in sent.items()}

    def __call__(
        self,
        gradients: Gradients,
        *,
        generator: Generator | None = None,
        model: nn.Module | None = None,
        batch: Batch | None = None,
    ) -> dict[str, Tensor]:
        """See `GradientDefence`."""
        zeros = {name: torch.zeros_like(value) for name, value in gradients.items()}
        return self.on_reply(zeros, gradients, generator)


def _array(value: Tensor) -> Array:
    """A copy in NumPy; bfloat16, which NumPy lacks, as float32."""
    value = value.detach().cpu()
    found: Array = (value.float() if value.dtype == torch.bfloat16 else value).numpy().copy()
    return found


def check_positive(**settings: float) -> None:
    """Refuse settings that are not positive and finite.

    Raises:
        ValueError: Naming the first.
    """
    for name, value in settings.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"expected {name} to be positive and finite, got {value:g}")
