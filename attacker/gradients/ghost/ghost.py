"""Inner products by layer: all candidates in one ordinary mini-batch.

Valid when all parameters that count belong to layers whose gradient follows from what they receive and from the
gradient of their output, each run once, or are combined with images by broadcasting (`direct_parameters`), and when
images do not mix in the forward pass. Then one backward pass gives the output gradients of every layer for every image.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor, nn

from attacker.gradients.base import GradientProducts, Products, matched_names, squared_norms
from attacker.gradients.batch_norm import batches_of
from attacker.gradients.ghost import attention, linear  # noqa: F401  each registers its kinds of layers
from attacker.gradients.ghost.convolution import one_by_one
from attacker.gradients.ghost.direct_parameters import DirectProducts, direct_parameters, is_by_image
from attacker.gradients.ghost.factors import vector_products
from attacker.gradients.ghost.layer_kinds import (
    CompositeKind,
    LayerProducts,
    ObservedLayer,
    covered,
    join,
    kind_of,
    layer_kind,
    layer_runs,
    name_in_model,
    plain_kind,
)
from attacker.gradients.ghost.norms import mixes_images
from attacker.gradients.ghost.weights_by_victim import ExchangedLayers, VictimLayers, victims_buffers
from attacker.gradients.replay import Replay, by_victim
from attacker.gradients.trace import Trace, Views, trace
from attacker.optim.double_precision import precise
from fl_precode.observation import Gradients

Passes = Mapping[str, tuple[Tensor, Tensor]]
"""By layer what it received, (images, ...), and the gradient of the candidate's loss with respect to its output."""


def why_not_factored(model: nn.Module, model_trace: Trace, matched: Collection[str] | None = None) -> str | None:
    """Structural reason why factors cannot give this model's gradients, or None when they may.

    The structure alone does not show whether images mix or weights are used outside of their layers;
    `attacker.gradients.one_step.gradient_products` compares values and gradients as well.

    Args:
        model: The model.
        model_trace: A trace of it.
        matched: Names of the parameters that count; None for all.
    """
    mixing = [name for name, module in model.named_modules() if mixes_images(module)]
    if mixing:
        return f"{mixing[0]} normalises by the batch, which mixes its images"
    counted = {name for name, _ in model.named_parameters()} if matched is None else set(matched)
    if len(list(model.named_parameters(remove_duplicate=False))) != len(list(model.parameters())):
        return "parameters are shared between modules"
    inside = covered(model)
    for name, module in model.named_modules():
        whole = isinstance(kind_of(module), CompositeKind)
        parameters = {key: value for key, value in module.named_parameters(name, recurse=whole) if key in counted}
        reason = _why_not_module(name, module, parameters, model_trace) if parameters and name not in inside else None
        if reason is not None:
            return reason
    reasons = [
        kind.why_not(run.module, run.output_shape)
        for run in layer_runs(model_trace)
        if (kind := layer_kind(run.module))
    ]
    return next((reason for reason in reasons if reason), None)


def _why_not_module(name: str, module: nn.Module, parameters: Mapping[str, Tensor], model_trace: Trace) -> str | None:
    kind, called = kind_of(module), f"{name or 'the model'} ({type(module).__name__})"
    if kind is None:
        known = all(is_by_image(value) for value in parameters.values())
        return None if known else f"{called} is no plain layer of a known kind"
    runs = [run for run in model_trace.layers if run.name == name]
    if len(runs) != 1:
        return f"{called} runs {len(runs)} times in one forward pass"
    if runs[0].inputs is None:
        return f"{called} gets no tensor as its first argument"
    if isinstance(kind, CompositeKind):
        reason = kind.why_not(module)
        return reason and f"{called} {reason}"
    if parameters.keys() - {join(name, parameter) for parameter in kind.parameters}:
        return f"{name} has parameters besides {' and '.join(kind.parameters)}"
    return None


def serves_one_by_one(model_trace: Trace, batch_size: int) -> bool:
    """Whether a layer is so large that candidates are better served one by one, with channels last."""
    return any(
        kind.is_large(run.module, run.inputs, batch_size)
        for run in model_trace.layers
        if (kind := plain_kind(run.module)) and run.inputs is not None
    )


class FactoredProducts(GradientProducts):
    """Products by layer from layer inputs and output gradients (also known as ghost products).

    Args:
        replay: The victim's loss, a mean over the batch, at the weights that the observed gradients belong to: one for
            all victims, or one for each victim. Then all layers with parameters must be of a known kind, and buffers
            besides the statistics of normalisation layers must be equal (ValueError otherwise).
        targets: Observed gradients, one for each victim.
        seen: A trace of the model for which `why_not_factored` gives no reason.
        batch_size: Images of one candidate.
        matched: Names of the parameters that count in the products; None for all.
        kept: Whether only elements count in which the observed gradient is not zero; see `elementwise_differences`.
        layers: How layers run for the candidates; None for the weights of the replay.

    Attributes:
        layers: How layers run for the candidates.
    """

    def __init__(
        self,
        replay: Replay | Sequence[Replay],
        targets: Sequence[Gradients],
        model_trace: Trace,
        *,
        batch_size: int,
        matched: Collection[str] | None = None,
        kept: bool = False,
        layers: ExchangedLayers | None = None,
    ) -> None:
        self._kept = kept
        replays = by_victim(replay, len(targets))
        names = matched_names(targets[0], matched)
        self._target_square = squared_norms(targets, names)
        runs = layer_runs(model_trace)
        self._modules = {run.name: run.module for run in runs}
        large = serves_one_by_one(model_trace, batch_size)
        self._large = large
        self.layers = layers or VictimLayers.of(model_trace, replays, large=large)
        self._replay = replace(replays[0], parameters={k: v.detach() for k, v in replays[0].parameters.items()})
        self._products: dict[str, LayerProducts] = {}
        for run in runs:
            kind = layer_kind(run.module)
            counted = {} if kind is None else {name: name_in_model(run, name) for name in kind.parameters}
            gradients = {
                name: [target[whole] for target in targets] for name, whole in counted.items() if whole in names
            }
            if kind is not None and gradients and run.inputs is not None:
                observed = ObservedLayer(
                    gradients=gradients,
                    buffers=victims_buffers(run, replays),
                    inputs=run.inputs,
                    batch_size=batch_size,
                    large=large,
                    kept=kept,
                )
                self._products[run.name] = kind.products(run.module, observed)
        for name, value in direct_parameters(self._replay.victim.model).items():
            if name in names and is_by_image(value):
                self._products[name] = DirectProducts([target[name] for target in targets])
        self._inplace = [m for m in self._replay.victim.model.modules() if getattr(m, "inplace", False) is True]
        if any(run.overwritten for run in model_trace.layers):
            with _out_of_place(self._inplace):
                model_trace = trace(self._replay.victim)
        # Only where they are needed: every operation of the model passes them.
        self._reshaped = Views if model_trace.views else nullcontext
        self._overwritten = {run.name for run in layer_runs(model_trace) if run.overwritten}

    def __call__(self, candidates: Tensor, labels: Tensor, noise: Sequence[Tensor] = ()) -> Products:
        """Products for every candidate; see `GradientProducts.__call__`."""
        return self.of(self.passed(candidates, labels, noise), candidates)

    def passed(self, candidates: Tensor, labels: Tensor, noise: Sequence[Tensor] = ()) -> Passes:
        """What every layer received and the gradient of its output, for one batch of every candidate.

        Args:
            candidates: (victims, restarts, batch, channels, height, width), normalised; any number of images.
            labels: Broadcastable to (victims, restarts, batch).
            noise: As for `GradientProducts.__call__`.
        """
        victims, restarts, batch = candidates.shape[:3]
        differentiable = torch.is_grad_enabled() and candidates.requires_grad
        alone = one_by_one(self._large, victims * restarts)
        layout = torch.channels_last if alone else torch.contiguous_format
        flat = candidates.flatten(0, 2).contiguous(memory_format=layout)
        with (
            self.layers.installed(candidates) as copies,
            torch.enable_grad(),
            batches_of(self._replay.victim.model, batch),
            self._reshaped(),
            self._record() as passes,
        ):
            inputs = flat if differentiable else flat.detach().requires_grad_(True)
            eps = [value.flatten(0, 2) for value in noise]
            weights = {**self._replay.parameters, **copies}
            loss = self._replay.loss(weights, inputs, labels.expand(victims, restarts, batch).flatten(), eps, batch)
            # The loss is a mean over all images of all candidates; each candidate's own loss is a mean over its images.
            total = loss * (victims * restarts)
            passes |= {name: (copy, copy) for name, copy in copies.items() if name in self._products}
            outputs = [output for _, output in passes.values()]
            deltas: tuple[Tensor | None, ...] = torch.autograd.grad(
                total, outputs, create_graph=differentiable, allow_unused=True
            )
        return {
            name: (received if differentiable else received.detach(), delta)
            for (name, (received, _)), delta in zip(passes.items(), deltas, strict=True)
            if delta is not None  # else the loss does not depend on this layer
        }

    def of(self, passes: Passes, candidates: Tensor) -> Products:
        """Products of the gradients that the layers' passes stand for.

        Args:
            passes: See `passed`.
            candidates: Whose they are.
        """
        victims, restarts, batch = candidates.shape[:3]
        with batches_of(self._replay.victim.model, batch):
            shares = {
                name: self._products[name](received, delta, victims, restarts)
                for name, (received, delta) in passes.items()
            }
        pairs = [share.products for share in shares.values() if share.products is not None]
        vectors = [vector for share in shares.values() for vector in share.vectors]
        if vectors:
            observed = torch.cat([target for name in shares for target in self._products[name].vectors], dim=1)
            formed = torch.cat(vectors, dim=2)
            pairs.append(vector_products(formed * (observed != 0).unsqueeze(1) if self._kept else formed, observed))
        if not pairs:
            zero = precise(candidates.new_zeros(victims, restarts))
            return Products(inner=zero, square=zero, target=self._target_square)
        inner, square = (torch.stack(terms).sum(0) for terms in zip(*pairs, strict=True))
        return Products(inner=inner, square=square, target=self._target_square)

    def keep(self, victims: Sequence[int], restarts: Sequence[Sequence[int]] | None = None) -> Self:
        """Products for some of the victims; see `GradientProducts.keep`."""
        kept, chosen = copy(self), list(victims)
        kept._target_square = self._target_square[chosen]
        kept._products = {name: products.keep(chosen) for name, products in self._products.items()}
        kept.layers = self.layers.keep(chosen, restarts)
        return kept

    @contextmanager
    def _record(self) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
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
            self._modules[name].register_forward_hook(
                lambda _, arguments, output, name=name: hook(name, arguments, output)
            )
            for name in self._products.keys() & self._modules.keys()
        ]
        try:
            with _out_of_place(self._inplace):
                yield passes
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def _out_of_place(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Activations that overwrite their input leave it alone inside the block, which spares copies of it."""
    try:
        for module in modules:
            module.__dict__["inplace"] = False
        yield
    finally:
        for module in modules:
            module.__dict__["inplace"] = True
