"""The gradient that an image gives in a chain of layers whose end is known: no labels, no noise, nothing behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacker.analytic.known_quantities import Leaked
from attacker.analytic.layer_chain import Step
from attacker.analytic.linear_systems import Patches


@dataclass(frozen=True, kw_only=True)
class ChainReplay:
    """Replays images of v victims through the chain, backwards from the known gradient at its end.

    What the layers behind the chain do is in that gradient already: a bottleneck with noise that nobody knows, dropout,
    a loss with any label. The gradient of the layer that the chain leads to is its features times a known factor, so
    that features stand for it.

    Attributes:
        steps: Layers that `attacker.analytic.layer_inversion.why_not_inverted` lets pass.
        leaked: Weights and gradients, features and their gradient.
        factors: What dropout multiplies by, by the layer's name.
        steepness: (v,), norm of the loss's gradient at the outputs of the layer that the chain leads to.
    """

    steps: Sequence[Step]
    leaked: Leaked
    factors: Mapping[str, Tensor]
    steepness: Tensor

    def gradients(self, x: Tensor) -> list[Tensor]:
        """What images would give, differentiable with respect to them.

        Args:
            x: (v, channels, height, width).

        Returns:
            (v, numbers) for the weight and the bias of each linear layer in order, constants aside, then of the layer
            after the chain.
        """
        with torch.enable_grad():  # derivatives of the chain itself are needed in any case
            return self._gradients(x if x.requires_grad else x.detach().requires_grad_(True))

    def _gradients(self, x: Tensor) -> list[Tensor]:
        value, columns, outputs = x, [], []
        for step in self.steps:
            value = value.reshape(-1, *step.input_shape)
            if isinstance(step.module, nn.Conv2d | nn.Linear):
                value, taken = self._linear(step, value)
                if self._told(step):
                    columns.append(taken)
                    outputs.append(value)
            else:
                value = self._elementwise(step, value)
        features = value.flatten(1)
        if not outputs:
            return [features * self.steepness[:, None]]
        pulled = torch.autograd.grad(features, outputs, self.leaked.gradient.flatten(1), create_graph=True)
        gradients = []
        for step, delta, taken in zip(self._linears(), pulled, columns, strict=True):
            groups = taken.shape[1]
            d = delta.reshape(len(x), groups, delta.shape[1] // groups, -1)
            formed = {"weight": (d @ taken.transpose(2, 3)).flatten(1), "bias": d.sum(dim=3).flatten(1)}
            gradients += [formed[name] for name in self._told(step)]
        return [*gradients, features * self.steepness[:, None]]

    def targets(self) -> list[Tensor]:
        """The leaked gradients in the order of `gradients`."""
        targets = []
        for step in self._linears():
            targets += [self.leaked.gradients[step.parameter(name)].flatten(1) for name in self._told(step)]
        return [*targets, self.leaked.features.flatten(1) * self.steepness[:, None]]

    def residual(self, x: Tensor) -> Tensor:
        """All of `gradients` minus `targets`, (v, rows), differentiable twice."""
        pairs = zip(self.gradients(x), self.targets(), strict=True)
        return torch.cat([got - target for got, target in pairs], dim=1)

    def relative_residual(self, x: Tensor) -> Tensor:
        """As `residual`, each tensor relative to the norm of the leaked one."""
        parts = []
        for got, target in zip(self.gradients(x), self.targets(), strict=True):
            size = target.norm(dim=1, keepdim=True)
            parts.append((got - target) / torch.where(size == 0, 1, size))
        return torch.cat(parts, dim=1)

    def distances(self, x: Tensor) -> Tensor:
        """``|g(x) - g*|^2 / |g*|^2`` over all of `gradients`, (v,); infinite where that is no number."""
        size = torch.stack([target.square().sum(dim=1) for target in self.targets()]).sum(dim=0)
        distances = self.residual(x).detach().square().sum(dim=1) / size
        return distances.nan_to_num(torch.inf, torch.inf)

    def _linears(self) -> list[Step]:
        return [step for step in self.steps if isinstance(step.module, nn.Conv2d | nn.Linear) and self._told(step)]

    def _told(self, step: Step) -> list[str]:
        """Which of a layer's weight and bias have a leaked gradient."""
        return [name for name in ("weight", "bias") if step.parameter(name) in self.leaked.gradients]

    def _linear(self, step: Step, value: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(step.module, nn.Conv2d | nn.Linear)
        patches = Patches.of(step.module, step.input_shape)
        columns = patches.take(value.reshape(-1, *patches.shape))
        weight = self.leaked.value(step.parameter("weight"))
        kernels = weight.reshape(-1, patches.groups, patches.outputs // patches.groups, patches.per_patch)
        z = (kernels @ columns).reshape(len(value), patches.outputs, -1)
        if step.module.bias is not None:
            z = z + self.leaked.value(step.parameter("bias")).reshape(-1, patches.outputs, 1)
        return z.reshape(len(value), *step.output_shape), columns

    def _elementwise(self, step: Step, value: Tensor) -> Tensor:
        module, leaked = step.module, self.leaked
        if step.name in self.factors:
            return value * self.factors[step.name].reshape(value.shape)
        if not isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            output: Tensor = module(value.clone())  # a copy: layers may work in place
            return output.reshape(-1, *step.output_shape)
        shape = (-1, step.output_shape[0], *[1] * (len(step.output_shape) - 1))
        buffers = [leaked.buffers[step.parameter(name)].reshape(shape) for name in ("running_mean", "running_var")]
        value = (value - buffers[0]) * (buffers[1] + module.eps).rsqrt()
        if not module.affine:
            return value
        weight, bias = (leaked.value(step.parameter(name)).reshape(shape) for name in ("weight", "bias"))
        return value * weight + bias
