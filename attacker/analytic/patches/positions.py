"""The learned position embedding whose gradient is that of the patches, found by what it does, not by its name.

A position embedding that is added to what the patch layer returns has the same gradient, number by number, whatever
comes later. So the sum of both is looked at where it enters a module: it is weighted by numbers that count its entries,
and the two gradients then say which entry of the embedding goes with which output of the patch layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from attacker.analytic.patches.patch_layer import Arrived, PatchLayer, sharing
from attacker.gradients.dropout_masks import dropout_layers
from attacker.gradients.uncompared_parameters import reference
from attacker.reasons import Reason, because
from attacker.victim import Victim
from fl_precode.randomness.random_layers import sample_noise

_CLOSE: Final = 1e-4


@dataclass(frozen=True, kw_only=True)
class PositionEmbedding:
    """Which entry of a parameter has the gradient of which number that the patch layer returns.

    Attributes:
        name: Name of the parameter.
        entries: (patches, width), places in the flat parameter.
        factor: (patches, width), the gradient at the patch layer's output over that of the entry.
    """

    name: str
    entries: Tensor
    factor: Tensor

    def token_gradients(self, gradient: Mapping[str, Tensor]) -> Tensor:
        """(patches, width), float64: the gradient at each output of the patch layer."""
        return gradient[self.name].flatten()[self.entries].double() * self.factor


@dataclass(frozen=True)
class _Linear:
    """What a sum of two or more tensors depends on: of each of its entries one entry of the tensor, times a constant.

    Attributes:
        known: (numel,), whether the entry goes into exactly one entry of the sum.
        place: (numel,), which one.
        factor: (numel,), by what it is multiplied.
    """

    known: Tensor
    place: Tensor
    factor: Tensor


@dataclass
class _Watch:
    """Looks at what enters modules after the patch layer has run, until positions have joined.

    Attributes:
        layer: The patch layer.
        tensors: What may be a position embedding, by name.
        found: Name of the embedding, entries and factor, once found.
        entered: Modules that were entered since the patch layer ran.
        changed: Whether what the patch layer returned had gone through another function before.
        again: At which module to compare only: where positions joined in an earlier run.
        agrees: Whether the relation that was found holds there.
    """

    layer: PatchLayer
    tensors: Mapping[str, Tensor]
    found: PositionEmbedding | None = None
    entered: int = 0
    changed: bool = False
    again: int | None = None
    agrees: bool = True
    output: Tensor | None = field(default=None, repr=False)

    def cut(self, _module: nn.Module, _arguments: object, output: Tensor) -> Tensor:
        """The patch layer's output, as something to differentiate by."""
        self.output = output.detach().requires_grad_(True)
        return self.output.clone()  # the model may add to it in place

    def enter(self, _module: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Look at what a module receives."""
        received = arguments[0] if arguments else None
        if self.output is None or not isinstance(received, Tensor) or not received.requires_grad:
            return
        self.entered += 1
        if self.again is None:
            self._look(received)
        elif self.entered == self.again:
            self._compare(received)
        if self.found is not None and self.again is None or self.changed or self.entered == self.again:
            raise Arrived

    def _gradients(self, received: Tensor, weights: Tensor) -> list[Tensor | None]:
        assert self.output is not None
        sources = [self.output, *self.tensors.values()]
        return list(torch.autograd.grad((received * weights).sum(), sources, allow_unused=True, retain_graph=True))

    def _look(self, received: Tensor) -> None:
        counted = torch.arange(1, received.numel() + 1, device=received.device).to(received).view_as(received)
        random = _random(received)
        by_weights = [self._gradients(received, one) for one in (torch.ones_like(received), counted, random)]
        if by_weights[0][0] is None or self.output is None:
            return
        linear = [_linear(parts, random) for parts in zip(*by_weights, strict=True)]
        own = linear[0]
        assert own is not None
        if not bool(own.known.all()):
            self.changed = True
            return
        for name, other in zip(self.tensors, linear[1:], strict=True):
            entries = None if other is None else _matched(own, other, received.numel())
            if entries is not None:
                assert other is not None
                flat = torch.arange(len(entries), device=entries.device).view(self.output.shape)
                order = self.layer.outputs(flat)
                entries = entries[order]
                factor = own.factor[order] / other.factor[entries]
                self.found = PositionEmbedding(name=name, entries=entries, factor=factor)
                return

    def _compare(self, received: Tensor) -> None:
        """Whether the relation holds with what now stands between the two, such as dropout."""
        assert self.found is not None
        gradients = dict(zip(("", *self.tensors), self._gradients(received, _random(received)), strict=True))
        own, other = gradients[""], gradients[self.found.name]
        if own is None or other is None:
            self.agrees = False
            return
        outputs, tokens = self.layer.outputs(own).double(), self.found.token_gradients({self.found.name: other})
        self.agrees = bool((outputs - tokens).abs().max() <= _CLOSE * outputs.abs().max())


def position_embedding(victim: Victim, layer: PatchLayer) -> PositionEmbedding | Reason:
    """The parameter that is added to what the patch layer returns, entry by entry; else why there is none.

    Args:
        victim: Public knowledge about the model.
        layer: Where patches enter it.
    """
    moving = {name: value for name, value in victim.model.named_parameters() if name != layer.weight}
    fixed = {
        name: value
        for name, value in victim.model.named_buffers()
        # No gradient reaches the statistics that batch normalisation goes by, and asking for one raises.
        if not isinstance(victim.model.get_submodule(name.rpartition(".")[0]), nn.modules.batchnorm._NormBase)
    }
    watch = _Watch(layer, _leaves({**moving, **fixed}))
    _watched(victim, watch)
    found = watch.found
    if found is None:
        return because("no-positions.changed" if watch.changed else "no-positions", name=layer.name)
    if found.name not in moving:
        return because("positions-did-not-move", name=found.name)
    if sharing(victim.model, moving[found.name]) > 1:
        return because("layer-shared", name=found.name)
    dropping = [victim.model.get_submodule(name) for name in dropout_layers(victim.model)]
    if dropping:
        again = _Watch(layer, watch.tensors, found=found, again=watch.entered)
        _watched(victim, again, training=dropping)
        if not again.agrees:
            return because("positions-behind-dropout", name=layer.name, positions=found.name)
    return found


def _leaves(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: value.detach().requires_grad_(True)
        for name, value in values.items()
        if value.is_floating_point() and value.numel()
    }


def _watched(victim: Victim, watch: _Watch, *, training: Sequence[nn.Module] = ()) -> None:
    """Run the model on a random image, under watch, until it has seen enough."""
    like = reference(victim.model)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, *victim.inputs.shape, generator=generator).to(like)
    handles = [module.register_forward_pre_hook(watch.enter) for module in victim.model.modules()]
    handles.append(watch.layer.module.register_forward_hook(watch.cut))
    noise = torch.Generator(like.device).manual_seed(0)
    devices = [like.device] if like.device.type == "cuda" else []
    for module in training:
        module.train()
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=devices), sample_noise(generator=noise):
            torch.manual_seed(0)
            functional_call(victim.model, dict(watch.tensors), (image,))
    except Arrived:
        pass
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.eval()


def _random(like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)


def _linear(gradients: Sequence[Tensor | None], random: Tensor) -> _Linear | None:
    """How a tensor goes into a sum, from its gradients for weights of one, counted ones and random ones."""
    if any(one is None for one in gradients):
        return None
    ones, counted, drawn = (one.flatten().double() for one in gradients if one is not None)
    used = ones.abs() > 1e-6 * ones.abs().max()
    place = torch.where(used, counted / ones, 1).round().long() - 1
    inside = (place >= 0) & (place < random.numel())
    expected = ones * random.flatten().double()[place.clamp(0, random.numel() - 1)]
    known = used & inside & ((drawn - expected).abs() <= _CLOSE * ones.abs())
    return _Linear(known=known, place=place, factor=ones)


def _matched(own: _Linear, other: _Linear, size: int) -> Tensor | None:
    """For each entry of the one tensor the entry of the other that goes to the same place; None where one has none."""
    table = torch.full((size,), -1, dtype=torch.int64, device=own.place.device)
    table[other.place[other.known]] = torch.nonzero(other.known).flatten()
    entries = table[own.place]
    return entries if bool((entries >= 0).all()) else None
