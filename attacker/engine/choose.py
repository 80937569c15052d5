"""Which implementation of the inner products fits a model: the fastest one that is seen to be right."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from attacker.engine.dense import DenseProducts
from attacker.engine.distance import cosine_distance
from attacker.engine.factored import FactoredProducts, why_not_factored
from attacker.engine.loop import LoopProducts
from attacker.engine.products import GradientProducts, Replay
from attacker.engine.trace import Trace
from fl_precode.observation import Gradients

logger = logging.getLogger(__name__)

# Differences, as shares of the value, that rounding does not reach. float64 tells a wrong second derivative, a few
# parts in a thousand on LayerNorm, from rounding.
_TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}

# More images in one pass do not run faster per image on a CPU, and need more memory.
_IMAGES_AT_ONCE = 64
_DENSE_NUMBERS_AT_ONCE = 2**26


def candidates_at_once(model: nn.Module, seen: Trace, *, batch_size: int) -> int:
    """How many candidates of ``batch_size`` images to attack in one piece, at least 1, so that memory stays bounded."""
    if why_not_factored(model, seen) is None:
        return max(1, _IMAGES_AT_ONCE // batch_size)
    return max(1, _DENSE_NUMBERS_AT_ONCE // max(1, sum(value.numel() for value in model.parameters())))


def gradient_products(
    replay: Replay,
    targets: Sequence[Gradients],
    seen: Trace,
    *,
    batch_size: int,
    matched: Collection[str] | None = None,
) -> GradientProducts:
    """The fastest exact products for this model.

    Structure does not show whether images mix or a weight is used outside of its layer, and ``vmap`` gives silently
    wrong second derivatives for some layers (LayerNorm and InstanceNorm with torch 2.15). So the fast versions are
    compared with plain double backward first, on two random candidates, in value and in gradient with respect to the
    image, in float64 where the device and the model can.

    Args:
        replay: The victim's loss at the weights that all observed gradients belong to.
        targets: Observed gradients, one for each victim.
        seen: A trace of the victim's model.
        batch_size: Images of one candidate.
        matched: Names of the parameters that count, as when a client shares some layers only; None for all.

    Returns:
        `FactoredProducts`, `DenseProducts` or `LoopProducts`, the first that agrees.

    Raises:
        ValueError: If the model is not twice differentiable, or ``matched`` holds other names or none.
    """
    probe = _Probe(replay, targets[0], seen, batch_size, matched)
    reason = why_not_factored(replay.victim.model, seen) or probe.disagreement(
        lambda cast, target: FactoredProducts(cast, [target], seen, batch_size=batch_size, matched=matched)
    )
    if reason is None:
        return FactoredProducts(replay, targets, seen, batch_size=batch_size, matched=matched)
    logger.debug("no factored gradients: %s", reason)
    reason = probe.disagreement(lambda cast, target: DenseProducts(cast, [target], matched=matched))
    if reason is None:
        return DenseProducts(replay, targets, matched=matched)
    logger.debug("no vmap over candidates: %s", reason)
    return LoopProducts(replay, targets, matched=matched)


class _Probe:
    """Two random candidates of one victim, and what plain double backward says about them."""

    def __init__(
        self, replay: Replay, target: Gradients, seen: Trace, batch_size: int, matched: Collection[str] | None
    ) -> None:
        self._axes = (1, 2, batch_size)
        self._latents = seen.latents
        generator = torch.Generator().manual_seed(0)
        self._labels = torch.randint(
            replay.victim.inputs.classes, self._axes, generator=generator, device=generator.device
        )
        failures = []
        for dtype in dict.fromkeys((torch.float64, next(iter(target.values())).dtype)):
            self._tolerance = _TOLERANCES.get(dtype, 1e-1)
            self.replay, self.target = _cast(replay, dtype), {name: value.to(dtype) for name, value in target.items()}
            try:
                self._distance, self._gradient = self._measure(
                    LoopProducts(self.replay, [self.target], matched=matched)
                )
            except torch.OutOfMemoryError:  # says nothing about the model
                raise
            except RuntimeError as error:  # float64 is not there on every device, nor in everyone's constants
                failures.append(str(error))
                continue
            return
        raise ValueError(
            "expected a twice differentiable model, but gradient matching cannot attack this one: the gradient of "
            f"{replay.victim.name!r} cannot be differentiated with respect to its inputs: {failures[-1]}"
        )

    def disagreement(self, build: Callable[[Replay, Gradients], GradientProducts]) -> str | None:
        """Why the products differ from plain double backward, or None when they agree."""
        try:
            distance, gradient = self._measure(build(self.replay, self.target))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError) as error:  # whatever a foreign model's layers object to
            return f"it fails on this model: {error}"
        if not bool(((distance - self._distance).abs() <= self._tolerance).all()):
            return "the distance differs from plain double backward (do images mix in the model?)"
        missed, size = (gradient - self._gradient).flatten(2).norm(dim=2), self._gradient.flatten(2).norm(dim=2)
        return None if bool((missed <= self._tolerance * size).all()) else "the second derivative differs"

    def _measure(self, products: GradientProducts) -> tuple[Tensor, Tensor]:
        """Distances (1, 2) and their gradients with respect to the candidates."""
        generator = torch.Generator().manual_seed(0)
        like = next(iter(self.target.values()))

        def draw(*shape: int) -> Tensor:
            drawn = torch.randn(*self._axes, *shape, generator=generator, dtype=like.dtype, device=generator.device)
            return drawn.to(like.device)

        candidates = draw(*self.replay.victim.inputs.shape).requires_grad_(True)
        noise = [draw(latent) for latent in self._latents]
        distance = cosine_distance(products(candidates, self._labels.to(like.device), noise))
        (gradient,) = torch.autograd.grad(distance.sum(), candidates)
        return distance.detach(), gradient


def _cast(replay: Replay, dtype: torch.dtype) -> Replay:
    """The same replay with all floating weights and buffers in ``dtype``."""

    def cast(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(dtype) if value.is_floating_point() else value for name, value in values.items()}

    buffers = {**dict(replay.victim.model.named_buffers()), **replay.buffers}
    return Replay(replay.victim, cast(replay.parameters), cast(buffers))
