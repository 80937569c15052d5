"""The one selection of every kind of products: the fastest representation that is seen to be right for a model.

Structure does not show whether images mix or a weight is used outside of its layer, and ``vmap`` gives silently wrong
second derivatives for some layers (LayerNorm and InstanceNorm with torch 2.15). So each fast way is compared with the
slow one on two random candidates, in value and in gradient with respect to the image, in float64 where the device and
the model can.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Hashable, Mapping, MutableMapping
from typing import TypeVarTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from attacker.gradients.base import GradientProducts
from attacker.gradients.ghost.layer_kinds import kind_of
from attacker.gradients.verify import RandomCandidates, Reference

logger = logging.getLogger(__name__)

LOOP = "loop"
"""The way that is right for every differentiable model, one candidate after another: the reference."""

Problem = TypeVarTuple("Problem")

# By model object, and by what else decides: the chosen way.
_CHOSEN: MutableMapping[nn.Module, dict[Hashable, str]] = WeakIdKeyDictionary(ref_type=weakref.ref)


def possible() -> None:
    """No structural reason speaks against a way."""


def fastest_way(
    build: Callable[[str, *Problem], GradientProducts],
    ways: Mapping[str, Callable[[], str | None]],
    *,
    problem: Callable[[torch.dtype], tuple[*Problem]],
    candidates: RandomCandidates,
    own: Tensor,
    decided_by: Hashable,
) -> str:
    """The first way whose products agree with those of the loop.

    The comparison is made once for a model object, as long as its layers and their modes stay what they are: pieces of
    one attack, and further attacks, share its outcome.

    Args:
        build: Makes the products of a problem in the named way.
        ways: Fastest first; each says why it is not possible, or None (`possible`). The loop comes after the last.
        problem: A problem in a dtype, small enough to be solved by the loop.
        candidates: What is measured, as for `Reference`.
        own: A tensor of the problem in its own dtype and on its device.
        decided_by: What decides besides the model, the ways and the shape of the candidates.

    Returns:
        The name of the way, `LOOP` when no other agrees.

    Raises:
        ValueError: If the model is not twice differentiable.
    """
    victim = candidates.victim
    key = (
        structure(victim.model), type(victim), victim.criterion, candidates.axes, tuple(ways), own.dtype, own.device,
        decided_by,
    )  # fmt: skip
    chosen = _CHOSEN.setdefault(victim.model, {})
    if key not in chosen:
        reference = Reference(lambda *case: build(LOOP, *case), problem, candidates, own)
        chosen[key] = LOOP
        for way, why_not in ways.items():
            reason = why_not() or reference.disagreement(lambda *case, way=way: build(way, *case))
            if reason is None:
                chosen[key] = way
                break
            logger.debug("no %s gradients: %s", way, reason)
    return chosen[key]


def structure(model: nn.Module) -> Hashable:
    """Layers with their settings, flags and modes; weights do not decide which products are right."""
    plain = (bool, int, float, str, tuple, type(None))
    return tuple(
        (name, type(module), kind_of(module), *((key, repr(value)) for key, value in vars(module).items()
                                                if isinstance(value, plain)))
        for name, module in model.named_modules()
    )  # fmt: skip
