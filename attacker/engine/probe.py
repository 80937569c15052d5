"""Whether fast products are right for a model: plain double backward on two random candidates tells."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from attacker.engine.distance import cosine_distance
from attacker.engine.loop import LoopProducts
from attacker.engine.products import GradientProducts, Replay
from attacker.engine.trace import Trace
from fl_precode.observation import Gradients

# Differences, as shares of the value, that rounding does not reach. float64 tells a wrong second derivative, a few
# parts in a thousand on LayerNorm, from rounding.
_TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}

Builder = Callable[[Sequence[Replay], Sequence[Gradients]], GradientProducts]
"""Makes products for replays and observed gradients of as many victims."""


class Probe:
    """Two random candidates, of two victims if weights differ, and what plain double backward says about them.

    Args:
        replays: One for each victim.
        targets: Observed gradients, one for each victim.
        seen: A trace of the model.
        batch_size: Images of one candidate.
        matched: Names of the parameters that count; None for all.

    Raises:
        ValueError: If the model is not twice differentiable, or ``matched`` holds other names or none.
    """

    def __init__(
        self,
        replays: Sequence[Replay],
        targets: Sequence[Gradients],
        seen: Trace,
        *,
        batch_size: int,
        matched: Collection[str] | None,
    ) -> None:
        others = [index for index, one in enumerate(replays) if one is not replays[0]][:1]
        chosen = [0, *others]
        self._axes = (len(chosen), 2 // len(chosen), batch_size)
        self._latents = seen.latents
        self._inputs = replays[0].victim.inputs
        generator = torch.Generator().manual_seed(0)
        self._labels = torch.randint(self._inputs.classes, self._axes, generator=generator, device=generator.device)
        failures = []
        for dtype in dict.fromkeys((torch.float64, next(iter(targets[0].values())).dtype)):
            self._tolerance = _TOLERANCES.get(dtype, 1e-1)
            self._replays = [_cast(replays[index], dtype) for index in chosen]
            self._targets = [{name: value.to(dtype) for name, value in targets[index].items()} for index in chosen]
            try:
                self._distance, self._gradient = self._measure(
                    LoopProducts(self._replays, self._targets, matched=matched)
                )
            except torch.OutOfMemoryError:  # says nothing about the model
                raise
            except RuntimeError as error:  # float64 is not there on every device, nor in everyone's constants
                failures.append(str(error))
                continue
            return
        raise ValueError(
            "expected a twice differentiable model, but gradient matching cannot attack this one: the gradient of "
            f"{replays[0].victim.name!r} cannot be differentiated with respect to its inputs: {failures[-1]}"
        )

    def disagreement(self, build: Builder) -> str | None:
        """Why the products differ from plain double backward, or None when they agree."""
        try:
            distance, gradient = self._measure(build(self._replays, self._targets))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError) as error:  # whatever a foreign model's layers object to
            return f"it fails on this model: {error}"
        if not bool(((distance - self._distance).abs() <= self._tolerance).all()):
            return "the distance differs from plain double backward (do images mix in the model?)"
        missed, size = (gradient - self._gradient).flatten(2).norm(dim=2), self._gradient.flatten(2).norm(dim=2)
        return None if bool((missed <= self._tolerance * size).all()) else "the second derivative differs"

    def _measure(self, products: GradientProducts) -> tuple[Tensor, Tensor]:
        """Distances (victims, restarts) and their gradients with respect to the candidates."""
        generator = torch.Generator().manual_seed(0)
        like = next(iter(self._targets[0].values()))

        def draw(*shape: int) -> Tensor:
            drawn = torch.randn(*self._axes, *shape, generator=generator, dtype=like.dtype, device=generator.device)
            return drawn.to(like.device)

        candidates = draw(*self._inputs.shape).requires_grad_(True)
        noise = [draw(*latent) for latent in self._latents]
        distance = cosine_distance(products(candidates, self._labels.to(like.device), noise))
        (gradient,) = torch.autograd.grad(distance.sum(), candidates)
        return distance.detach(), gradient


def _cast(replay: Replay, dtype: torch.dtype) -> Replay:
    """The same replay with all floating weights and buffers in ``dtype``."""

    def cast(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(dtype) if value.is_floating_point() else value for name, value in values.items()}

    buffers = {**dict(replay.victim.model.named_buffers()), **replay.buffers}
    return Replay(replay.victim, cast(replay.parameters), cast(buffers))
