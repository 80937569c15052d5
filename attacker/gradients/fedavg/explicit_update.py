"""Products of updates that are really formed, one for each candidate: what a client computes, by vmap or one by one.

What is computed is a `ClientUpdate`: one gradient, unrolled local training, or one gradient at surrogate weights. What
is measured of it is said by `ObservedUpdates`: inner products, or differences element by element.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor
from torch.func import grad, vmap

from attacker.gradients.base import GradientProducts, Products, matched_names, squared_norms
from attacker.gradients.distances import Elements
from attacker.gradients.elementwise import elementwise_differences, stacked_units
from attacker.gradients.observed import kept_gradient, observed_gradient, steps_behind
from attacker.gradients.replay import Replay
from attacker.gradients.select import fastest_way
from attacker.gradients.trace import Trace
from attacker.gradients.verify import RandomCandidates, cast, cast_replay
from attacker.optim.double_precision import precise
from fl_precode.observation import Gradients, Observation

_PROBED_STEPS = 2

Formed = Callable[..., dict[str, Tensor]]
"""Maps one candidate's tensors to what its client would send, by parameter name."""


class ClientUpdate(ABC):
    """What a client sends for its images, on the scale of one gradient."""

    @abstractmethod
    def form(self, candidates: Tensor, labels: Tensor, noise: Sequence[Tensor], *, vmapped: bool) -> dict[str, Tensor]:
        """The update of every candidate.

        Args:
            candidates: (victims, restarts, batch, channels, height, width), normalised.
            labels: (victims, restarts, batch).
            noise: What each bottleneck adds, (victims, restarts, batch, ...) each.
            vmapped: All candidates at once by ``vmap``, or one after another.

        Returns:
            (victims, restarts, ...) by parameter name, differentiable where the candidates are.
        """

    def keep(self, victims: Sequence[int], restarts: Sequence[Sequence[int]] | None) -> Self:
        """The same for some of the candidates; see `GradientProducts.keep`."""
        del victims, restarts
        return self


class ObservedUpdates:
    """Observed updates on the scale of a gradient, ready for products with formed ones.

    Args:
        targets: One for each victim, by parameter name.
        matched: Names of the parameters that count; None for all.
        elements: Which elements count, and how; None compares all, by inner products.
        units: Units of each victim, by parameter name, what updates are divided by; None for 1.

    Raises:
        ValueError: If ``matched`` holds other names or none.
    """

    def __init__(
        self,
        targets: Sequence[Gradients],
        matched: Collection[str] | None = None,
        elements: Elements | None = None,
        units: Sequence[Mapping[str, float]] | None = None,
    ) -> None:
        names = matched_names(targets[0], matched)
        self._targets = {name: torch.stack([target[name] for target in targets]) for name in names}
        self._units = None if units is None else stacked_units(units, self._targets)
        self._elements = Elements() if units is not None and elements is None else elements
        self._square = squared_norms(targets, names) if self._elements is None else None

    @property
    def names(self) -> list[str]:
        """Parameters that count."""
        return list(self._targets)

    def keep(self, victims: Sequence[int]) -> ObservedUpdates:
        """Those of some victims."""
        kept, chosen = copy(self), list(victims)
        kept._targets = {name: value[chosen] for name, value in self._targets.items()}
        kept._square = None if self._square is None else self._square[chosen]
        if self._units is not None:
            kept._units = {name: unit[chosen] for name, unit in self._units.items()}
        return kept

    def products(self, formed: Mapping[str, Tensor]) -> Products:
        """Products with ``formed``, (victims, restarts, ...) by name of each parameter, of which some may not count."""
        if self._square is None:
            return elementwise_differences(formed, self._targets, self._elements or Elements(), self._units)
        inner = square = precise(self._square.new_zeros(()))
        for name, target in self._targets.items():
            update = formed[name].reshape(*formed[name].shape[:2], -1)  # a parameter may have no dimensions
            inner = inner + precise(update * target.reshape(len(target), 1, -1)).sum(-1)
            square = square + precise(update.square()).sum(-1)
        return Products(inner=inner, square=square, target=self._square)


class FormedProducts(GradientProducts):
    """Forms every candidate's update, and compares it with the observed one.

    Memory grows with candidates times parameters. With ``vmapped`` products are right as far as torch's batching rules
    are: the second derivatives of LayerNorm and InstanceNorm are wrong with torch 2.15. So a selection compares first
    (`attacker.gradients.select.fastest_way`).

    Args:
        update: What the clients compute.
        observed: What they sent.
        vmapped: All candidates at once, or one after another.

    Attributes:
        update: As given.
        vmapped: As given.
    """

    def __init__(self, update: ClientUpdate, observed: ObservedUpdates, *, vmapped: bool) -> None:
        self.update, self._observed = update, observed
        self.vmapped = vmapped

    def __call__(self, candidates: Tensor, labels: Tensor, noise: Sequence[Tensor] = ()) -> Products:
        """Products for every candidate, ``batch`` being all images of the client; see `GradientProducts.__call__`."""
        labels = labels.expand(candidates.shape[:3])
        return self._observed.products(self.update.form(candidates, labels, noise, vmapped=self.vmapped))

    def keep(self, victims: Sequence[int], restarts: Sequence[Sequence[int]] | None = None) -> Self:
        """Products for some of the candidates; see `GradientProducts.keep`."""
        kept = copy(self)
        kept.update = self.update.keep(victims, restarts)
        kept._observed = self._observed.keep(victims)
        return kept


def weight_gradient(
    replay: Replay, weights: Mapping[str, Tensor], x: Tensor, y: Tensor, noise: Sequence[Tensor], *, vmapped: bool
) -> dict[str, Tensor]:
    """Gradient of one candidate's loss at weights that may depend on its images, differentiable where these are.

    Args:
        replay: The victim's loss, at whose weights those parameters stay that are not among ``weights``.
        weights: Where, by name.
        x: (images, channels, height, width).
        y: (images,).
        noise: (images, latent) for each bottleneck.
        vmapped: By ``torch.func``, or by plain autograd: a sixth faster, and independent of ``vmap``'s rules.
    """

    def loss(weights: Mapping[str, Tensor]) -> Tensor:
        return replay.loss({**replay.parameters, **weights}, x, y, noise)

    if vmapped:
        gradient: dict[str, Tensor] = grad(loss)(dict(weights))
        return gradient
    differentiable = torch.is_grad_enabled() and (x.requires_grad or any(w.requires_grad for w in weights.values()))
    with torch.enable_grad():
        leaves = {name: w if w.requires_grad else w.detach().requires_grad_(True) for name, w in weights.items()}
        values = torch.autograd.grad(
            loss(leaves), list(leaves.values()), create_graph=differentiable, materialize_grads=True
        )
    return dict(zip(leaves, values, strict=True))


def form_each(form: Formed, *arguments: object, vmapped: bool) -> dict[str, Tensor]:
    """Apply ``form`` to every candidate.

    Args:
        form: Written for one candidate, with gradients by `weight_gradient`.
        arguments: Tensors, or lists or mappings of tensors, (victims, restarts, ...) each.
        vmapped: All candidates at once by ``vmap``, or one after another.

    Returns:
        (victims, restarts, ...) by parameter name.
    """
    leaves, structure = torch.utils._pytree.tree_flatten(arguments)
    victims, restarts = leaves[0].shape[:2]
    flat = [leaf.flatten(0, 1) for leaf in leaves]

    def unpacked(*values: Tensor) -> dict[str, Tensor]:
        return form(*torch.utils._pytree.tree_unflatten(list(values), structure))

    if vmapped:
        updates: dict[str, Tensor] = vmap(unpacked, randomness="different")(*flat)
    else:
        each = [unpacked(*(leaf[index] for leaf in flat)) for index in range(victims * restarts)]
        updates = {name: torch.stack([update[name] for update in each]) for name in each[0]}
    return {name: value.reshape(victims, restarts, *value.shape[1:]) for name, value in updates.items()}


def targets_of(observations: Sequence[Observation], elements: Elements | None) -> list[Gradients]:
    """Observed updates on the scale of one gradient, with their zeros where only kept elements count."""
    kept = elements is not None and elements.kept
    return [kept_gradient(observation) if kept else observed_gradient(observation) for observation in observations]


def fastest_of(
    build: Callable[[str, Replay, Sequence[Observation]], GradientProducts],
    ways: Mapping[str, Callable[[], str | None]],
    replay: Replay,
    observations: Sequence[Observation],
    trace: Trace,
    *,
    decided_by: Hashable,
) -> str:
    """The fastest exact way for local training, seen on the first victim and at most two steps (`fastest_way`)."""
    first = observations[0]
    protocol = _shortened(first).protocol
    return fastest_way(
        build,
        ways,
        problem=lambda dtype: _in_dtype(replay, _shortened(first), dtype),
        candidates=RandomCandidates(replay.victim, trace, (1, 2, first.batch_size or 1)),
        own=next(iter(first.parameters.values())),
        decided_by=(decided_by, protocol),
    )


def _shortened(observation: Observation) -> Observation:
    steps = min(steps_behind(observation) or 1, _PROBED_STEPS)
    return replace(observation, protocol=replace(observation.protocol, local_steps=steps, local_epochs=None))


def _in_dtype(replay: Replay, observation: Observation, dtype: torch.dtype) -> tuple[Replay, Sequence[Observation]]:
    parameters, update = cast(observation.parameters, dtype), cast(observation.update, dtype)
    whole = replace(cast_replay(replay, dtype), parameters=parameters)
    return whole, [replace(observation, parameters=parameters, update=update)]
