"""Products of updates that are really formed, one for each candidate; the ways to form them, and the fastest right one.

For replays that differ from "the gradient at the observed weights": local training and surrogate weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.func import grad, vmap

from attacker.engine.distance import Elements
from attacker.engine.elementwise import elementwise_differences, stacked_units
from attacker.engine.observed import kept_gradient, observed_gradient, steps_behind
from attacker.engine.probe import RandomCandidates, Reference, cast, cast_replay
from attacker.engine.products import GradientProducts, Products, Replay, matched_names, precise, squared_norms
from attacker.engine.trace import Trace
from fl_precode.observation import Observation

logger = logging.getLogger(__name__)

_PROBED_STEPS = 2

Formed = Callable[..., dict[str, Tensor]]
"""Maps one candidate's tensors to what its client would send, by parameter name."""

Build = Callable[[str, Replay, Sequence[Observation]], GradientProducts]
"""Products that work in the named way."""


class ObservedUpdates:
    """Observed updates on the scale of a gradient, ready for products with formed ones.

    Args:
        observations: One for each victim.
        matched: Names of the parameters that count; None for all.
        elements: Which elements count, and how; None compares all, by inner products.
        units: Of each victim, by parameter name, what updates are divided by; None for 1.
    """

    def __init__(
        self,
        observations: Sequence[Observation],
        matched: Collection[str] | None = None,
        elements: Elements | None = None,
        units: Sequence[Mapping[str, float]] | None = None,
    ) -> None:
        kept = elements is not None and elements.kept
        targets = [kept_gradient(one) if kept else observed_gradient(one) for one in observations]
        names = matched_names(targets[0], matched)
        self._targets = {name: torch.stack([one[name] for one in targets]) for name in names}
        self._square = squared_norms(targets, names)
        self._units = None if units is None else stacked_units(units, self._targets)
        self._elements = Elements() if units is not None and elements is None else elements

    def keep(self, victims: Sequence[int]) -> ObservedUpdates:
        """Those of some victims."""
        kept, chosen = copy(self), list(victims)
        kept._targets = {name: value[chosen] for name, value in self._targets.items()}
        kept._square = self._square[chosen]
        if self._units is not None:
            kept._units = {name: unit[chosen] for name, unit in self._units.items()}
        return kept

    def products(self, formed: Mapping[str, Tensor]) -> Products:
        """Products with ``formed``, (victims, restarts, ...) by name of each parameter, of which some may not count."""
        if self._elements is not None:
            return elementwise_differences(formed, self._targets, self._elements, self._units)
        inner = square = precise(self._square.new_zeros(()))
        for name, target in self._targets.items():
            one = formed[name].reshape(*formed[name].shape[:2], -1)  # a parameter may have no dimensions
            inner = inner + precise(one * target.reshape(len(target), 1, -1)).sum(-1)
            square = square + precise(one.square()).sum(-1)
        return Products(inner=inner, square=square, target=self._square)


def weight_gradient(
    replay: Replay, weights: Mapping[str, Tensor], x: Tensor, y: Tensor, noise: Sequence[Tensor], *, vmapped: bool
) -> dict[str, Tensor]:
    """Gradient of one candidate's loss at weights that may depend on its images, differentiable where these are.

    Args:
        replay: The victim's loss.
        weights: Where, by name.
        x: (images, channels, height, width).
        y: (images,).
        noise: (images, latent) for each bottleneck.
        vmapped: By ``torch.func``, or by plain autograd: a sixth faster, and independent of ``vmap``'s rules.
    """
    if vmapped:
        found: dict[str, Tensor] = grad(replay.loss)(weights, x, y, noise)
        return found
    differentiable = torch.is_grad_enabled() and (x.requires_grad or any(w.requires_grad for w in weights.values()))
    with torch.enable_grad():
        leaves = {name: w if w.requires_grad else w.detach().requires_grad_(True) for name, w in weights.items()}
        loss = replay.loss(leaves, x, y, noise)
        values = torch.autograd.grad(loss, list(leaves.values()), create_graph=differentiable, materialize_grads=True)
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
        found: dict[str, Tensor] = vmap(unpacked, randomness="different")(*flat)
    else:
        each = [unpacked(*(leaf[index] for leaf in flat)) for index in range(victims * restarts)]
        found = {name: torch.stack([one[name] for one in each]) for name in each[0]}
    return {name: value.reshape(victims, restarts, *value.shape[1:]) for name, value in found.items()}


def fastest_exact(
    build: Build, ways: Sequence[str], replay: Replay, observations: Sequence[Observation], seen: Trace
) -> GradientProducts:
    """Products in the first way that is seen to be right; ``vmap`` silently is not for some layers.

    Each way is compared with the way "loop", in value and in gradient with respect to the image, on two random
    candidates of the first victim and at most two local steps, in float64 where the device and the model can.

    Args:
        build: Makes the products.
        ways: To try, fastest first; "loop" comes after the last.
        replay: The victim's loss at the weights that the clients received.
        observations: One for each victim, of the same problem.
        seen: A trace of the victim's model.

    Raises:
        ValueError: If the model is not twice differentiable.
    """
    candidates = RandomCandidates(replay.victim, seen, (1, 2, observations[0].batch_size or 1))
    own = next(iter(observations[0].parameters.values()))
    reference = Reference(partial(build, "loop"), partial(_shortened, replay, observations[0]), candidates, own)
    for way in ways:
        reason = reference.disagreement(partial(build, way))
        if reason is None:
            return build(way, replay, observations)
        logger.debug("not %s: %s", way, reason)
    return build("loop", replay, observations)


def _shortened(replay: Replay, observation: Observation, dtype: torch.dtype) -> tuple[Replay, list[Observation]]:
    """The same problem in ``dtype``, with fewer steps."""
    steps = min(steps_behind(observation) or 1, _PROBED_STEPS)
    short = replace(
        observation,
        parameters=cast(observation.parameters, dtype),
        update=cast(observation.update, dtype),
        protocol=replace(observation.protocol, local_steps=steps, local_epochs=None),
    )
    whole = cast_replay(replay, dtype)
    return replace(whole, parameters=short.parameters), [short]
