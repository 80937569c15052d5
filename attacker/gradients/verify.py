"""Verification of fast products for a model, against plain double backward on two random candidates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, NamedTuple, TypeVarTuple

import torch
from torch import Tensor

from attacker.gradients.base import GradientProducts
from attacker.gradients.distances import cosine_distance
from attacker.gradients.replay import Replay
from attacker.gradients.trace import Trace
from attacker.victim import Victim

# Differences, as shares of the value, that rounding does not reach. float64 tells a wrong second derivative, a few
# parts in a thousand on LayerNorm, from rounding.
_TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}

Problem = TypeVarTuple("Problem")


class _Measured(NamedTuple):
    """Distances (victims, restarts) and their gradients with respect to the candidates."""

    distance: Tensor
    gradient: Tensor


class RandomCandidates(NamedTuple):
    """Candidates that are the same at every measurement.

    Attributes:
        victim: Whose images they look like.
        seen: A trace of its model.
        axes: (victims, restarts, batch).
    """

    victim: Victim
    seen: Trace
    axes: tuple[int, int, int]

    def measure(self, products: GradientProducts, like: Tensor) -> _Measured:
        """What the products say, in dtype and on the device of ``like``."""
        generator, inputs = torch.Generator().manual_seed(0), self.victim.inputs
        labels = torch.randint(inputs.classes, self.axes, generator=generator, device=generator.device)

        def draw(*shape: int) -> Tensor:
            drawn = torch.randn(*self.axes, *shape, generator=generator, dtype=like.dtype, device=generator.device)
            return drawn.to(like.device)

        candidates = draw(*inputs.shape).requires_grad_(True)
        noise = [draw(*latent) for latent in self.seen.latents]
        distance = cosine_distance(products(candidates, labels.to(like.device), noise))
        (gradient,) = torch.autograd.grad(distance.sum(), candidates)
        return _Measured(distance.detach(), gradient)


class Reference(Generic[*Problem]):
    """What a slow and sure way says about two random candidates, in float64 where the device and the model can.

    Args:
        build: Makes the slow products of a problem.
        problem: The problem in a dtype.
        candidates: What is measured.
        own: A tensor of the problem as it is.

    Raises:
        ValueError: If the model is not twice differentiable.
    """

    def __init__(
        self,
        build: Callable[[*Problem], GradientProducts],
        problem: Callable[[torch.dtype], tuple[*Problem]],
        candidates: RandomCandidates,
        like: Tensor,
    ) -> None:
        self._candidates = candidates
        failure = ""
        for dtype in dict.fromkeys((torch.float64, like.dtype)):
            self._tolerance = _TOLERANCES.get(dtype, 1e-1)
            try:
                self._like = like.new_empty(0).to(dtype)
                self._problem = problem(dtype)
                self._expected = candidates.measure(build(*self._problem), self._like)
            except torch.OutOfMemoryError:  # says nothing about the model
                raise
            except (RuntimeError, TypeError) as error:  # float64 is not there on every device, nor in all constants
                failure = str(error)
                continue
            return
        raise ValueError(
            "expected a twice differentiable model, but gradient matching cannot attack this one: the update of "
            f"{candidates.victim.name!r} cannot be differentiated with respect to its inputs: {failure}"
        )

    def disagreement(self, build: Callable[[*Problem], GradientProducts]) -> str | None:
        """Why the products differ from the slow ones, or None when they agree."""
        try:
            distance, gradient = self._candidates.measure(build(*self._problem), self._like)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a foreign model's layers object to
            return f"it fails on this model: {error}"
        expected = self._expected
        if not bool(((distance - expected.distance).abs() <= self._tolerance).all()):
            return "the distance differs from plain double backward (do images mix in the model?)"
        missed = (gradient - expected.gradient).flatten(2).norm(dim=2)
        size = expected.gradient.flatten(2).norm(dim=2)
        return None if bool((missed <= self._tolerance * size).all()) else "the second derivative differs"


def cast(values: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The values, those that are floating in ``dtype``."""
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in values.items()}


def cast_replay(replay: Replay, dtype: torch.dtype) -> Replay:
    """The same replay with all floating weights and buffers in ``dtype``."""
    buffers = {**dict(replay.victim.model.named_buffers()), **replay.buffers}
    return Replay(replay.victim, cast(replay.parameters, dtype), cast(buffers, dtype))
