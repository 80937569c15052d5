"""Release of one client as a function of its images: the map that an inversion attack inverts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from attacker.gradients.replay import Replay
from attacker.gradients.trace import Trace, trace
from attacker.gradients.uncompared_parameters import reference
from attacker.victim import Victim


@dataclass(frozen=True, kw_only=True)
class Released:
    """The gradient of one step as a function of the images behind it, at fixed weights, labels and noise.

    Images are pixels in [0, 1], so that every error that follows is one of pixels whatever the normalisation.

    Attributes:
        replay: The victim's loss, and the weights at which the gradient is taken.
        labels: (batch,) class indices.
        noise: What each bottleneck adds, (batch, latent) in order of execution; empty for models without one.
        matched: Parameters whose gradients are released, in the order of the flat gradient.
    """

    replay: Replay
    labels: Tensor
    noise: tuple[Tensor, ...]
    matched: tuple[str, ...]

    @property
    def weights(self) -> dict[str, Tensor]:
        """Parameters whose gradients are released, by name, detached."""
        return {name: self.replay.parameters[name].detach() for name in self.matched}

    @property
    def gradient_numbers(self) -> int:
        """Length of the flat gradient, d_theta."""
        return sum(self.replay.parameters[name].numel() for name in self.matched)

    def loss(self, weights: Mapping[str, Tensor], pixels: Tensor, noise: Sequence[Tensor]) -> Tensor:
        """Training loss at ``weights``, which hold the released parameters, of (batch, channels, height, width)."""
        images = self.replay.victim.inputs.normalise(pixels)
        return self.replay.loss({**self.replay.parameters, **weights}, images, self.labels, noise)

    def gradient(self, pixels: Tensor, noise: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
        """The released gradient by name, without a graph; ``noise`` in place of its own where given."""
        weights = {name: value.requires_grad_(True) for name, value in self.weights.items()}
        with torch.enable_grad():
            loss = self.loss(weights, pixels.detach(), self.noise if noise is None else noise)
        gradients = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
        return dict(zip(weights, gradients, strict=True))

    def flat(self, gradient: Mapping[str, Tensor]) -> Tensor:
        """Tensors by name as one vector (d_theta,) in the order of ``matched``."""
        return torch.cat([gradient[name].flatten() for name in self.matched])

    def restricted(self, matched: Collection[str]) -> Self:
        """The same, as if only some of the parameters' gradients were released.

        Raises:
            ValueError: If none of them is there.
        """
        names = tuple(name for name in self.matched if name in matched)
        if not names:
            raise ValueError(f"expected some of the parameters {', '.join(self.matched)}, got {sorted(matched)}")
        return type(self)(replay=self.replay, labels=self.labels, noise=self.noise, matched=names)

    def double(self) -> Self:
        """The same in float64."""
        replay = Replay(self.replay.victim, _double(self.replay.parameters), _double(_buffers(self.replay)))
        noise = tuple(value.double() for value in self.noise)
        return type(self)(replay=replay, labels=self.labels, noise=noise, matched=self.matched)


def released(
    victim: Victim,
    labels: Tensor,
    *,
    noise: Sequence[Tensor] = (),
    parameters: Mapping[str, Tensor] | None = None,
    buffers: Mapping[str, Tensor] | None = None,
) -> Released:
    """The gradient of one step on images with these labels.

    Args:
        victim: Public knowledge about the model; batch normalisation uses its running buffers.
        labels: (batch,) class indices.
        noise: As `draw_noise` makes it, for models with a bottleneck.
        parameters: Weights by name; None for those of the victim's model.
        buffers: Buffers by name; those left out are the model's.

    Raises:
        ValueError: If labels are out of range, or the model has bottlenecks and the noise does not fit them.
    """
    classes = victim.label_numbers
    if labels.dim() != 1 or not len(labels) or bool(((labels < 0) | (labels >= classes)).any()):
        raise ValueError(f"expected labels (batch,) from 0 to {classes - 1}, got {labels.tolist()}")
    wanted = [(len(labels), *shape) for shape in bottleneck_shapes(victim)]
    given = [tuple(value.shape) for value in noise]
    if wanted != given:
        raise ValueError(
            f"expected noise of shapes {wanted} for the bottlenecks of {victim.name!r}, got {given}; what leaks is a "
            "property of one draw: make one by attacker.leakage.draw_noise"
        )
    trainable = dict(victim.model.named_parameters()) if parameters is None else parameters
    weights = {name: value.detach() for name, value in trainable.items()}
    replay = Replay(victim, weights, buffers or {})
    return Released(replay=replay, labels=labels, noise=tuple(noise), matched=tuple(weights))


def bottleneck_shapes(victim: Victim) -> tuple[tuple[int, ...], ...]:
    """Shape of the noise that each bottleneck draws for one image, in order of execution."""
    return _trace(victim).latents if _random(victim.model) else ()


def draw_noise(victim: Victim, batch: int, *, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Standard normal noise for each bottleneck, (batch, latent) in order of execution; empty without bottlenecks."""
    like = reference(victim.model)
    return tuple(
        torch.randn(batch, *shape, generator=generator, dtype=torch.float64, device=generator.device).to(like)
        for shape in bottleneck_shapes(victim)
    )


def _random(model: nn.Module) -> bool:
    from fl_precode.randomness.random_layers import Bottleneck

    return any(isinstance(module, Bottleneck) for module in model.modules())


def _trace(victim: Victim) -> Trace:
    return trace(victim, batch_size=1)


def _buffers(replay: Replay) -> dict[str, Tensor]:
    return {**dict(replay.victim.model.named_buffers()), **replay.buffers}


def _double(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() if value.is_floating_point() else value for name, value in values.items()}
