"""Clients that send one gradient: how it is represented, and the selection of the fastest exact way."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from attacker.gradients.base import GradientProducts
from attacker.gradients.distances import Elements
from attacker.gradients.double_backward import LoopProducts
from attacker.gradients.fedavg.explicit_update import (
    ClientUpdate,
    FormedProducts,
    ObservedUpdates,
    form_each,
    weight_gradient,
)
from attacker.gradients.ghost.ghost import FactoredProducts, why_not_factored
from attacker.gradients.replay import Replay, by_victim
from attacker.gradients.select import LOOP, fastest_way, possible
from attacker.gradients.trace import Trace
from attacker.gradients.verify import RandomCandidates, cast, cast_replay
from fl_precode.observation import Gradients


class OneGradient(ClientUpdate):
    """The gradient of the victims' loss at weights that they share, or at those of each.

    Args:
        replays: One for each victim.
        names: Parameters whose gradient is wanted.
    """

    def __init__(self, replays: Sequence[Replay], names: Collection[str]) -> None:
        self._replays, self._names = list(replays), list(names)

    def form(self, candidates: Tensor, labels: Tensor, noise: Sequence[Tensor], *, vmapped: bool) -> dict[str, Tensor]:
        """See `ClientUpdate.form`."""
        if all(replay is self._replays[0] for replay in self._replays):
            whole = partial(self._gradient, self._replays[0], vmapped=vmapped)
            return form_each(whole, candidates, labels, list(noise), vmapped=vmapped)
        each = [  # exact, but without the gain of one pass
            form_each(
                partial(self._gradient, replay, vmapped=vmapped),
                candidates[v : v + 1], labels[v : v + 1], [value[v : v + 1] for value in noise], vmapped=vmapped,
            )
            for v, replay in enumerate(self._replays)
        ]  # fmt: skip
        return {name: torch.cat([gradients[name] for gradients in each]) for name in self._names}

    def keep(self, victims: Sequence[int], restarts: Sequence[Sequence[int]] | None) -> Self:
        """See `ClientUpdate.keep`."""
        del restarts
        kept = copy(self)
        kept._replays = [self._replays[index] for index in victims]
        return kept

    def _gradient(
        self, replay: Replay, x: Tensor, y: Tensor, noise: Sequence[Tensor], *, vmapped: bool
    ) -> dict[str, Tensor]:
        weights = {name: replay.parameters[name].detach() for name in self._names}
        return weight_gradient(replay, weights, x, y, noise, vmapped=vmapped)


class DenseProducts(FormedProducts):
    """Inner products from the gradients of all candidates at once, by ``vmap(grad)``.

    Args:
        replay: The victim's loss at the weights that the observed gradients belong to: one for all victims, or one for
            each victim.
        targets: Observed gradients, one for each victim.
        matched: Names of the parameters that count in the products; None for all.
    """

    def __init__(
        self,
        replay: Replay | Sequence[Replay],
        targets: Sequence[Gradients],
        *,
        matched: Collection[str] | None = None,
    ) -> None:
        observed = ObservedUpdates(targets, matched)
        super().__init__(OneGradient(by_victim(replay, len(targets)), observed.names), observed, vmapped=True)


class ElementwiseProducts(FormedProducts):
    """Compares every candidate's gradient with the observed one element by element (`elementwise_differences`).

    Args:
        replay: As for `DenseProducts`.
        targets: Observed gradients, one for each victim.
        elements: Which elements count, and how.
        at_once: Whether all candidates run together by ``vmap``, or one after another.
        matched: Names of the parameters that count in the products; None for all.
        units: Units of each victim, by parameter name, what gradients are divided by; None for 1.
    """

    def __init__(
        self,
        replay: Replay | Sequence[Replay],
        targets: Sequence[Gradients],
        *,
        elements: Elements,
        at_once: bool,
        matched: Collection[str] | None = None,
        units: Sequence[Mapping[str, float]] | None = None,
    ) -> None:
        observed = ObservedUpdates(targets, matched, elements, units)
        super().__init__(OneGradient(by_victim(replay, len(targets)), observed.names), observed, vmapped=at_once)


def weights_pay(model: nn.Module, trace: Trace) -> bool:
    """Whether victims with different weights are attacked faster in one piece than one after another.

    Where products are factored they are: with one CPU core, 8 victims by 2 (MLP of 4.2 million parameters) to 5 times
    (LeNet), ResNet-20 by 1.2 (64 channels) to 3 times (16), however little of the stacked weights fits the cache. Of
    the other products each victim's are computed by themselves, so that nothing is gained.
    """
    return why_not_factored(model, trace) is None


def gradient_products(
    replay: Replay | Sequence[Replay],
    targets: Sequence[Gradients],
    trace: Trace,
    *,
    batch_size: int,
    matched: Collection[str] | None = None,
) -> GradientProducts:
    """The fastest exact products for this model.

    Args:
        replay: The victim's loss at the weights that all observed gradients belong to, or one for each victim at its
            own weights; see `weights_pay` for when that is faster than victim after victim.
        targets: Observed gradients, one for each victim.
        trace: A trace of the victim's model.
        batch_size: Images of one candidate.
        matched: Names of the parameters that count, as when a client shares some layers only; None for all.

    Returns:
        `FactoredProducts`, `DenseProducts` or `LoopProducts`, the first that agrees with the last.

    Raises:
        ValueError: If the model is not twice differentiable, if ``matched`` holds other names or none, or if there are
            more or fewer replays than targets.
    """

    def build(way: str, replays: Sequence[Replay], targets: Sequence[Gradients]) -> GradientProducts:
        if way == "factored":
            return FactoredProducts(replays, targets, trace, batch_size=batch_size, matched=matched)
        return (LoopProducts if way == LOOP else DenseProducts)(replays, targets, matched=matched)

    replays = by_victim(replay, len(targets))
    ways = {"factored": lambda: why_not_factored(replays[0].victim.model, trace, matched), "dense": possible}
    return _fastest(build, ways, replays, targets, trace, batch_size=batch_size, matched=matched)


def elementwise_products(
    replay: Replay,
    targets: Sequence[Gradients],
    trace: Trace,
    *,
    batch_size: int,
    elements: Elements,
    matched: Collection[str] | None = None,
    units: Sequence[Mapping[str, float]] | None = None,
) -> GradientProducts:
    """The fastest products that are seen to agree with plain double backward.

    Those over kept elements follow from factors where the model's gradient does; absolute differences need the
    gradient itself, by ``vmap`` where its rules are right.

    Args:
        replay: The victim's loss at the weights that all observed gradients belong to.
        targets: Observed gradients, one for each victim.
        trace: A trace of the victim's model.
        batch_size: Images of one candidate.
        elements: Which elements count, and how.
        matched: Names of the parameters that count; None for all.
        units: Units of each victim, by parameter name, what gradients are divided by; None for 1.

    Returns:
        `FactoredProducts`, only for kept elements, or `ElementwiseProducts`.

    Raises:
        ValueError: If the model is not twice differentiable, or ``matched`` holds other names or none.
    """

    def build(way: str, replays: Sequence[Replay], targets: Sequence[Gradients]) -> GradientProducts:
        if way == "factored":
            return FactoredProducts(replays, targets, trace, batch_size=batch_size, matched=matched, kept=True)
        chosen_units = None if units is None else units[: len(targets)]  # a probe looks at the first victim only
        return ElementwiseProducts(
            replays, targets, elements=elements, at_once=way == "vmap", matched=matched, units=chosen_units
        )

    ways: dict[str, Callable[[], str | None]] = {"vmap": possible}
    if elements.kept and not elements.formed and units is None:
        ways = {"factored": lambda: why_not_factored(replay.victim.model, trace, matched), **ways}
    whole = [replay] * len(targets)
    return _fastest(
        build, ways, whole, targets, trace, batch_size=batch_size, matched=matched, measure=(elements, units is None)
    )


def _fastest(
    build: Callable[[str, Sequence[Replay], Sequence[Gradients]], GradientProducts],
    ways: Mapping[str, Callable[[], str | None]],
    replays: Sequence[Replay],
    targets: Sequence[Gradients],
    trace: Trace,
    *,
    batch_size: int,
    matched: Collection[str] | None,
    measure: object = None,
) -> GradientProducts:
    """Products in the fastest way that agrees on one victim, or on two if their weights differ."""
    some = [0, *[index for index, replay in enumerate(replays) if replay is not replays[0]][:1]]

    def problem(dtype: torch.dtype) -> tuple[Sequence[Replay], Sequence[Gradients]]:
        return [cast_replay(replays[index], dtype) for index in some], [cast(targets[index], dtype) for index in some]

    forms = tuple((value.dtype, value.device) for value in targets[0].values())
    way = fastest_way(
        build,
        ways,
        problem=problem,
        candidates=RandomCandidates(replays[0].victim, trace, (len(some), 2 // len(some), batch_size)),
        own=next(iter(targets[0].values())),
        decided_by=(measure, None if matched is None else frozenset(matched), forms),
    )
    return build(way, replays, targets)
