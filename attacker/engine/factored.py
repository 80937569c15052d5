"""Inner products from factors: all candidates in one ordinary mini-batch, no weight gradient is ever formed.

Valid when all parameters belong to plain Linear and Conv2d layers, each run once, and when images do not mix in the
forward pass. Then one backward pass gives the output gradients of every layer for every image.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from typing import Self

import torch
from torch import Tensor, nn

from attacker.engine.by_victim import VictimLayers
from attacker.engine.factors import PlainLayer, WeightTarget, layer_rows, weight_by_group
from attacker.engine.products import (
    GradientProducts,
    Products,
    Replay,
    by_victim,
    matched_names,
    precise,
    squared_norms,
)
from attacker.engine.trace import Trace
from fl_precode.observation import Gradients


def why_not_factored(model: nn.Module, seen: Trace) -> str | None:
    """Structural reason why factors cannot give this model's gradients, or None when they may.

    The structure alone does not show whether images mix or weights are used outside of their layers;
    `attacker.engine.choose.gradient_products` compares values and gradients as well.
    """
    if len(list(model.named_parameters(remove_duplicate=False))) != len(list(model.parameters())):
        return "parameters are shared between modules"
    runs = [run.name for run in seen.layers]
    for name, module in model.named_modules():
        if not any(True for _ in module.parameters(recurse=False)):
            continue
        if type(module) not in (nn.Linear, nn.Conv2d):
            return f"{name or 'the model'} ({type(module).__name__}) is no plain Linear or Conv2d layer"
        if runs.count(name) != 1:
            return f"{name} ({type(module).__name__}) runs {runs.count(name)} times in one forward pass"
        if set(dict(module.named_parameters(recurse=False))) - {"weight", "bias"}:
            return f"{name} has parameters besides weight and bias"
    shapes = [run.output_shape for run in seen.layers if isinstance(run.module, nn.Conv2d)]
    return "a convolution gets images without a batch axis" if any(len(s or ()) != 4 for s in shapes) else None


class FactoredProducts(GradientProducts):
    """Products by layer from layer inputs and output gradients (also known as ghost products).

    Args:
        replay: The victim's loss, a mean over the batch, at the weights that the observed gradients belong to: one for
            all victims, or one for each victim; these must have equal buffers (ValueError otherwise).
        targets: Observed gradients, one for each victim.
        seen: A trace of the model for which `why_not_factored` gives no reason.
        batch_size: Images of one candidate.
        matched: Names of the parameters that count in the products; None for all.
    """

    def __init__(
        self,
        replay: Replay | Sequence[Replay],
        targets: Sequence[Gradients],
        seen: Trace,
        *,
        batch_size: int,
        matched: Collection[str] | None = None,
    ) -> None:
        replays = by_victim(replay, len(targets))
        self._replay = replays[0]
        self._layers: dict[str, PlainLayer] = {
            run.name: run.module for run in seen.layers if isinstance(run.module, nn.Linear | nn.Conv2d)
        }
        self._victim_layers: VictimLayers | None = None
        if any(not _same_tensors(one.buffers, replays[0].buffers) for one in replays):
            raise ValueError(
                "expected victims with equal buffers: all of them pass the model together; use the dense products"
            )
        if any(one is not replays[0] for one in replays):
            self._victim_layers = VictimLayers(self._layers, [one.parameters for one in replays])
        self._overwritten = {run.name for run in seen.layers if run.overwritten}
        names = matched_names(targets[0], matched)
        self._target_square = squared_norms(targets, names)
        self._weights: dict[str, WeightTarget] = {}
        self._biases: dict[str, Tensor] = {}
        for run in seen.layers:
            layer = self._layers[run.name]
            weight_name, bias_name = _join(run.name, "weight"), _join(run.name, "bias")
            if weight_name in names:
                weights = [weight_by_group(layer, one[weight_name]) for one in targets]
                places = _places(run.output_shape or (), layer, len(seen.probe))
                self._weights[run.name] = WeightTarget(weights, batch_size * places)
            if bias_name in names:
                groups = 1 if isinstance(layer, nn.Linear) else layer.groups
                self._biases[run.name] = torch.stack([one[bias_name].reshape(groups, -1) for one in targets])

    def __call__(self, candidates: Tensor, labels: Tensor, noise: Sequence[Tensor] = ()) -> Products:
        """Products for every candidate; see `GradientProducts.__call__`."""
        victims, restarts, batch = candidates.shape[:3]
        differentiable = torch.is_grad_enabled() and candidates.requires_grad
        flat = candidates.flatten(0, 2)
        with torch.enable_grad(), self._own_weights(), self._record() as passes:
            inputs = flat if differentiable else flat.detach().requires_grad_(True)
            eps = [value.flatten(0, 2) for value in noise]
            loss = self._replay.loss(
                self._replay.parameters, inputs, labels.expand(victims, restarts, batch).flatten(), eps
            )
            # The loss is a mean over all images of all candidates; each candidate's own loss is a mean over its images.
            total = loss * (victims * restarts)
            outputs = [output for _, output in passes.values()]
            deltas: tuple[Tensor | None, ...] = torch.autograd.grad(
                total, outputs, create_graph=differentiable, allow_unused=True
            )
        inner = square = precise(candidates.new_zeros(victims, restarts))
        for (name, (received, _)), delta in zip(passes.items(), deltas, strict=True):
            if delta is None:  # the loss does not depend on this layer
                continue
            if not differentiable:
                received = received.detach()
            for layer_inner, layer_square in self._layer_products(name, received, delta, victims, restarts):
                inner = inner + layer_inner
                square = square + layer_square
        return Products(inner=inner, square=square, target=self._target_square)

    def keep(self, victims: Sequence[int], restarts: Sequence[Sequence[int]] | None = None) -> Self:
        """Products for some of the victims; see `GradientProducts.keep`."""
        del restarts
        kept, chosen = copy(self), list(victims)
        kept._target_square = self._target_square[chosen]
        kept._weights = {name: target.keep(chosen) for name, target in self._weights.items()}
        kept._biases = {name: bias[chosen] for name, bias in self._biases.items()}
        kept._victim_layers = None if self._victim_layers is None else self._victim_layers.keep(chosen)
        return kept

    def _layer_products(
        self, name: str, received: Tensor, delta: Tensor, victims: int, restarts: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        rows = layer_rows(self._layers[name], received, delta, victims, restarts)
        if name in self._weights:
            yield rows.weight_products(self._weights[name])
        if name in self._biases:
            yield rows.bias_products(self._biases[name])

    def _own_weights(self) -> AbstractContextManager[None]:
        return nullcontext() if self._victim_layers is None else self._victim_layers.installed()

    @contextmanager
    def _record(self) -> Iterator[Mapping[str, tuple[Tensor, Tensor]]]:
        """Layer inputs and outputs of the forward pass inside the block, by layer name in order of execution."""
        passes: dict[str, tuple[Tensor, Tensor]] = {}

        def hook(name: str, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            received = arguments[0]
            if not output.requires_grad:  # a layer that does not see the image still has a gradient
                output.requires_grad_(True)
            if name not in self._overwritten:
                passes[name] = (received, output)
                return None
            passes[name] = (received.clone(), output)
            return output.clone()

        handles = [
            layer.register_forward_hook(lambda _, arguments, output, name=name: hook(name, arguments, output))
            for name, layer in self._layers.items()
            if name in self._weights or name in self._biases
        ]
        try:
            yield passes
        finally:
            for handle in handles:
                handle.remove()


def _join(module: str, parameter: str) -> str:
    return f"{module}.{parameter}" if module else parameter


def _places(output_shape: tuple[int, ...], layer: PlainLayer, images: int) -> int:
    """Rows that one image contributes: pixels of a convolution's output, tokens of a Linear layer's."""
    count = 1
    for size in output_shape:
        count *= size
    features = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    return count // (features * images)


def _same_tensors(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
