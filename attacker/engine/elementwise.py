"""Distances that look at single elements of the gradient: sums of absolute differences, and kept elements only."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import copy
from functools import partial
from typing import Self

import torch
from torch import Tensor
from torch.func import grad, vmap

from attacker.engine.distance import Differences, Elements
from attacker.engine.factored import FactoredProducts, why_not_factored
from attacker.engine.probe import gradient_reference
from attacker.engine.products import GradientProducts, Products, Replay, by_victim, matched_names, precise
from attacker.engine.trace import Trace
from fl_precode.observation import Gradients

logger = logging.getLogger(__name__)


def elementwise_differences(
    formed: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    elements: Elements,
    units: Mapping[str, Tensor] | None = None,
) -> Differences:
    """Compare formed gradients, or updates, with the observed ones element by element.

    With ``kept`` the square is ``|g o m|^2`` for the mask ``m = [g* != 0]``: ``<g o m, g*> = <g, g*>``, so that cosine
    and squared distance of these products are those over the elements that a pruned update kept. What is zero for
    another reason, such as a unit that was not active, is left out with the rest.

    Args:
        formed: (victims, restarts, ...) by parameter name.
        targets: (victims, ...) by parameter name, those that count.
        elements: Which elements count, and how.
        units: (victims,) by parameter name, what both gradients are divided by; None for 1.
    """
    pairs = []
    for name, stacked in targets.items():
        g = formed[name].reshape(*formed[name].shape[:2], -1)  # a parameter may have no dimensions
        target = stacked.reshape(len(stacked), -1)
        if units is not None:
            unit = units[name].to(target).unsqueeze(1)
            g, target = g / unit.unsqueeze(2), target / unit
        pairs.append((g * (target != 0).unsqueeze(1) if elements.kept else g, target))
    square = _total(precise(g.square()) for g, _ in pairs)
    target_square = _total(precise(target.square()) for _, target in pairs)
    if elements.aligned:
        tiny = torch.finfo(square.dtype).tiny
        factor = target_square.sqrt().unsqueeze(1) * square.clamp_min(tiny).rsqrt()
        pairs = [(g * factor.to(g).unsqueeze(2), target) for g, target in pairs]
        square = square * factor.square()
    inner = _total(precise(g * target.unsqueeze(1)) for g, target in pairs)
    absolute = _total(precise((g - target.unsqueeze(1)).abs()) for g, target in pairs)
    magnitude = _total(precise(target.abs()) for _, target in pairs)
    found = Differences.of(Products(inner=inner, square=square, target=target_square), absolute, magnitude)
    if elements.signs:
        agreeing = _total(precise(g * target.sign().unsqueeze(1)) for g, target in pairs)
        found.agreement = agreeing / _total(precise(g.abs()) for g, _ in pairs).clamp_min(
            torch.finfo(square.dtype).tiny
        )
    return found


def stacked_units(units: Sequence[Mapping[str, float]], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Units of every victim, (victims,) by name of each target; 1 for names that have none."""
    return {
        name: torch.tensor([one.get(name, 1.0) for one in units], dtype=target.dtype, device=target.device)
        for name, target in targets.items()
    }


def _total(parts: Iterable[Tensor]) -> Tensor:
    """Sum over the last axis and over all parts."""
    return torch.stack([part.sum(-1) for part in parts]).sum(0)


def elementwise_products(
    replay: Replay,
    targets: Sequence[Gradients],
    seen: Trace,
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
        seen: A trace of the victim's model.
        batch_size: Images of one candidate.
        elements: Which elements count, and how.
        matched: Names of the parameters that count; None for all.
        units: Of each victim, by parameter name, what gradients are divided by; None for 1.

    Returns:
        `FactoredProducts`, only for kept elements, or `ElementwiseProducts`.

    Raises:
        ValueError: If the model is not twice differentiable, or ``matched`` holds other names or none.
    """

    def factored(replays: Sequence[Replay], targets: Sequence[Gradients]) -> GradientProducts:
        return FactoredProducts(replays, targets, seen, batch_size=batch_size, matched=matched, kept=True)

    def formed(replays: Sequence[Replay], targets: Sequence[Gradients], *, at_once: bool) -> GradientProducts:
        own = None if units is None else units[: len(targets)]  # a probe looks at the first victim only
        return ElementwiseProducts(replays, targets, elements=elements, at_once=at_once, matched=matched, units=own)

    replays = [replay] * len(targets)
    reference = gradient_reference(
        replays, targets, seen, batch_size=batch_size, matched=matched, build=partial(formed, at_once=False)
    )
    if elements.kept and not elements.formed and units is None:
        reason = why_not_factored(replay.victim.model, seen, matched) or reference.disagreement(factored)
        if reason is None:
            return factored(replays, targets)
        logger.debug("no factored gradients: %s", reason)
    reason = reference.disagreement(partial(formed, at_once=True))
    if reason is not None:
        logger.debug("no vmap over candidates: %s", reason)
    return formed(replays, targets, at_once=reason is None)


class ElementwiseProducts(GradientProducts):
    """Forms every candidate's gradient, and compares it with the observed one; see `elementwise_differences`.

    Args:
        replay: The victim's loss at the weights that the observed gradients belong to: one for all victims, or one for
            each victim.
        targets: Observed gradients, one for each victim.
        elements: Which elements count, and how.
        at_once: Whether all candidates run together by ``vmap``, which is wrong for some layers (see `DenseProducts`),
            or one after another.
        matched: Names of the parameters that count in the products; None for all.
        units: Of each victim, by parameter name, what gradients are divided by; None for 1.
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
        self._replays = by_victim(replay, len(targets))
        self._targets = {
            name: torch.stack([one[name] for one in targets]) for name in matched_names(targets[0], matched)
        }
        self._elements = elements
        self._units = None if units is None else stacked_units(units, self._targets)
        self._at_once = at_once

    def __call__(self, candidates: Tensor, labels: Tensor, noise: Sequence[Tensor] = ()) -> Differences:
        """Products for every candidate, and the sums of absolute differences; see `GradientProducts.__call__`."""
        formed = self._gradients(candidates, labels.expand(candidates.shape[:3]), noise)
        return elementwise_differences(formed, self._targets, self._elements, self._units)

    def keep(self, victims: Sequence[int], restarts: Sequence[Sequence[int]] | None = None) -> Self:
        """Products for some of the victims; see `GradientProducts.keep`."""
        del restarts
        some = copy(self)
        some._replays = [self._replays[index] for index in victims]
        some._targets = {name: target[list(victims)] for name, target in self._targets.items()}
        if self._units is not None:
            some._units = {name: unit[list(victims)] for name, unit in self._units.items()}
        return some

    def _gradients(self, x: Tensor, y: Tensor, noise: Sequence[Tensor]) -> dict[str, Tensor]:
        """Gradient of every candidate, (victims, restarts, ...) by name."""
        form = self._all_at_once if self._at_once else self._one_by_one
        if all(replay is self._replays[0] for replay in self._replays):
            flat = form(self._replays[0], x.flatten(0, 1), y.flatten(0, 1), [value.flatten(0, 1) for value in noise])
            return {name: g.reshape(*x.shape[:2], *g.shape[1:]) for name, g in flat.items()}
        each = [form(replay, x[v], y[v], [value[v] for value in noise]) for v, replay in enumerate(self._replays)]
        return {name: torch.stack([one[name] for one in each]) for name in self._targets}

    def _all_at_once(self, replay: Replay, x: Tensor, y: Tensor, noise: list[Tensor]) -> dict[str, Tensor]:
        """Gradients (candidates, ...) by name, for ``x`` (candidates, batch, ...)."""

        def loss(weights: Mapping[str, Tensor], one: Tensor, labels: Tensor, eps: list[Tensor]) -> Tensor:
            return replay.loss({**replay.parameters, **weights}, one, labels, eps)

        weights = {name: replay.parameters[name] for name in self._targets}
        found: dict[str, Tensor] = vmap(grad(loss), in_dims=(None, 0, 0, 0), randomness="different")(
            weights, x, y, noise
        )
        return found

    def _one_by_one(self, replay: Replay, x: Tensor, y: Tensor, noise: list[Tensor]) -> dict[str, Tensor]:
        """The same by plain double backward."""
        differentiable = torch.is_grad_enabled() and x.requires_grad
        rows = []
        for index in range(len(x)):
            weights = {name: replay.parameters[name].detach().requires_grad_(True) for name in self._targets}
            with torch.enable_grad():
                loss = replay.loss({**replay.parameters, **weights}, x[index], y[index], [eps[index] for eps in noise])
                rows.append(
                    torch.autograd.grad(
                        loss, list(weights.values()), create_graph=differentiable, materialize_grads=True
                    )
                )
        return {name: torch.stack(parts) for name, parts in zip(self._targets, zip(*rows, strict=True), strict=True)}
