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
from attacker.engine.products import GradientProducts, Replay, by_victim
from attacker.engine.trace import Trace
from fl_precode.observation import Gradients

logger = logging.getLogger(__name__)

# Differences, as shares of the value, that rounding does not reach. float64 tells a wrong second derivative, a few
# parts in a thousand on LayerNorm, from rounding.
_TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}


def weights_pay(model: nn.Module, seen: Trace) -> bool:
    """Whether victims with different weights are attacked faster in one piece than one after another.

    Where products are factored they are: with one CPU core, 8 victims by 2 (MLP of 4.2 million parameters) to 5 times
    (LeNet), ResNet-20 by 1.2 (64 channels) to 3 times (16), however little of the stacked weights fits the cache. Of
    the other products each victim's are computed by themselves, so that nothing is gained.
    """
    return why_not_factored(model, seen) is None


def gradient_products(
    replay: Replay | Sequence[Replay],
    targets: Sequence[Gradients],
    seen: Trace,
    *,
    batch_size: int,
    matched: Collection[str] | None = None,
    kind: type[GradientProducts] | None = None,
) -> GradientProducts:
    """The fastest exact products for this model.

    Structure does not show whether images mix or a weight is used outside of its layer, and ``vmap`` gives silently
    wrong second derivatives for some layers (LayerNorm and InstanceNorm with torch 2.15). So the fast versions are
    compared with plain double backward first, on two random candidates, in value and in gradient with respect to the
    image, in float64 where the device and the model can.

    Args:
        replay: The victim's loss at the weights that all observed gradients belong to, or one for each victim at its
            own weights; see `weights_pay` for when that is faster than victim after victim.
        targets: Observed gradients, one for each victim.
        seen: A trace of the victim's model.
        batch_size: Images of one candidate.
        matched: Names of the parameters that count, as when a client shares some layers only; None for all.
        kind: What an earlier call chose for the same model, batch size, ``matched`` and kind of ``replay`` (one, or
            one for each victim): it is taken without comparing again.

    Returns:
        `FactoredProducts`, `DenseProducts` or `LoopProducts`, the first that agrees.

    Raises:
        ValueError: If the model is not twice differentiable, if ``matched`` holds other names or none, or if there are
            more or fewer replays than targets.
    """
    replays = by_victim(replay, len(targets))
    model = replays[0].victim.model

    def factored(replays: Sequence[Replay], targets: Sequence[Gradients]) -> GradientProducts:
        return FactoredProducts(replays, targets, seen, batch_size=batch_size, matched=matched)

    def dense(replays: Sequence[Replay], targets: Sequence[Gradients]) -> GradientProducts:
        return DenseProducts(replays, targets, matched=matched)

    def loop(replays: Sequence[Replay], targets: Sequence[Gradients]) -> GradientProducts:
        return LoopProducts(replays, targets, matched=matched)

    builders = {FactoredProducts: factored, DenseProducts: dense, LoopProducts: loop}
    if kind is not None:
        return builders[kind](replays, targets)
    probe = Probe(replays, targets, seen, batch_size, loop)
    reason = why_not_factored(model, seen, matched) or probe.disagreement(factored)
    if reason is None:
        return factored(replays, targets)
    logger.debug("no factored gradients: %s", reason)
    reason = probe.disagreement(dense)
    if reason is None:
        return dense(replays, targets)
    logger.debug("no vmap over candidates: %s", reason)
    return loop(replays, targets)


_Builder = Callable[[Sequence[Replay], Sequence[Gradients]], GradientProducts]


class Probe:
    """Two random candidates, of two victims if weights differ, and what plain double backward says about them."""

    def __init__(
        self,
        replays: Sequence[Replay],
        targets: Sequence[Gradients],
        seen: Trace,
        batch_size: int,
        loop: _Builder,
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
                self._distance, self._gradient = self._measure(loop(self._replays, self._targets))
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

    def disagreement(self, build: _Builder) -> str | None:
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
