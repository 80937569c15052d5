"""Which implementation of the inner products fits a model: the fastest one that is seen to be right."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Collection, Hashable, Mapping, MutableMapping, Sequence

from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from attacker.engine.dense import DenseProducts
from attacker.engine.factored import FactoredProducts, why_not_factored
from attacker.engine.loop import LoopProducts
from attacker.engine.probe import Builder, Reference, gradient_reference
from attacker.engine.products import GradientProducts, Replay, by_victim
from attacker.engine.trace import Trace
from fl_precode.observation import Gradients

logger = logging.getLogger(__name__)

# By model object, and by what else decides: the chosen implementation.
_CHOSEN: MutableMapping[nn.Module, dict[Hashable, str]] = WeakIdKeyDictionary(ref_type=weakref.ref)


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
) -> GradientProducts:
    """The fastest exact products for this model.

    Structure does not show whether images mix or a weight is used outside of its layer, and ``vmap`` gives silently
    wrong second derivatives for some layers (LayerNorm and InstanceNorm with torch 2.15). So the fast versions are
    compared with plain double backward first, on two random candidates, in value and in gradient with respect to the
    image, in float64 where the device and the model can. The comparison is made once for a model object, as long as its
    layers and their modes stay what they are: pieces of one attack, and further attacks, share its outcome.

    Args:
        replay: The victim's loss at the weights that all observed gradients belong to, or one for each victim at its
            own weights; see `weights_pay` for when that is faster than victim after victim.
        targets: Observed gradients, one for each victim.
        seen: A trace of the victim's model.
        batch_size: Images of one candidate.
        matched: Names of the parameters that count, as when a client shares some layers only; None for all.

    Returns:
        `FactoredProducts`, `DenseProducts` or `LoopProducts`, the first that agrees.

    Raises:
        ValueError: If the model is not twice differentiable, if ``matched`` holds other names or none, or if there are
            more or fewer replays than targets.
    """
    replays = by_victim(replay, len(targets))

    def factored(replays: Sequence[Replay], targets: Sequence[Gradients]) -> GradientProducts:
        return FactoredProducts(replays, targets, seen, batch_size=batch_size, matched=matched)

    def dense(replays: Sequence[Replay], targets: Sequence[Gradients]) -> GradientProducts:
        return DenseProducts(replays, targets, matched=matched)

    def loop(replays: Sequence[Replay], targets: Sequence[Gradients]) -> GradientProducts:
        return LoopProducts(replays, targets, matched=matched)

    model = replays[0].victim.model
    key = (
        _structure(model), type(replays[0].victim), replays[0].victim.criterion, batch_size,
        None if matched is None else frozenset(matched), any(one is not replays[0] for one in replays),
        *((one.dtype, one.device) for one in targets[0].values()),
    )  # fmt: skip
    chosen = _CHOSEN.setdefault(model, {})
    if key not in chosen:
        reference = gradient_reference(replays, targets, seen, batch_size=batch_size, matched=matched)
        chosen[key] = _fastest(
            {"factored": factored, "dense": dense}, reference, why_not_factored(model, seen, matched)
        )
    return {"factored": factored, "dense": dense, "loop": loop}[chosen[key]](replays, targets)


def _structure(model: nn.Module) -> Hashable:
    """Layers with their settings, flags and modes; weights do not decide which products are right."""
    plain = (bool, int, float, str, tuple, type(None))
    return tuple(
        (name, type(module), *((key, repr(value)) for key, value in vars(module).items() if isinstance(value, plain)))
        for name, module in model.named_modules()
    )


def _fastest(
    builders: Mapping[str, Builder],
    reference: Reference[Sequence[Replay], Sequence[Gradients]],
    not_factored: str | None,
) -> str:
    """Name of the first builder that agrees with plain double backward, or "loop"."""
    for name, build in builders.items():
        reason = (not_factored if name == "factored" else None) or reference.disagreement(build)
        if reason is None:
            return name
        logger.debug("no %s gradients: %s", name, reason)
    return "loop"
