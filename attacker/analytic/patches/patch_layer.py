"""The layer that sees patches of the image, and which number that enters it is which pixel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacker.gradients.trace import Trace
from attacker.gradients.uncompared_parameters import moves, reference
from attacker.reasons import Reason, because
from attacker.victim import Victim
from fl_precode.randomness.random_layers import sample_noise

PatchModule = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d

_DROPOUT: Final = nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d | nn.AlphaDropout | nn.FeatureAlphaDropout
_NOT_IN_PATCHES: Final = -1
_DIGIT: Final = 1024
"""Numbers of pixels are shown to the model in two parts below this: float32 counts to 16 million only."""


class Arrived(Exception):  # noqa: N818 - it ends a forward pass early, and is no error
    """A forward pass has come as far as was asked."""


@dataclass(frozen=True, kw_only=True)
class PatchLayer:
    """A Linear layer or a convolution, each of whose outputs sees a patch of pixels times constants plus others.

    Attributes:
        name: As in ``named_modules``.
        module: The layer.
        pixels: (patches, numbers), the place of each number's pixel in the flat image; below zero for padding.
        scale: (patches, numbers), what the model multiplies the pixel by before the layer; 0 for padding.
        shift: (patches, numbers), what it adds then.
        shape: (channels, height, width) of the image.
    """

    name: str
    module: PatchModule
    pixels: Tensor
    scale: Tensor
    shift: Tensor
    shape: tuple[int, int, int]

    @property
    def weight(self) -> str:
        """Name of the weight."""
        return f"{self.name}.weight" if self.name else "weight"

    @property
    def width(self) -> int:
        """Numbers that the layer returns for a patch."""
        return len(self.module.weight)

    def outputs(self, returned: Tensor) -> Tensor:
        """What the layer returned for one image as (patches, width), in the order of `pixels`."""
        return _rows(self.module, returned)

    def image(self, received: Tensor) -> tuple[Tensor, int]:
        """The image whose patches enter the layer as ``received``, (patches, numbers), and how many pixels none shows.

        A pixel that several patches show is their mean; one that none shows is the mean of all the others.

        Returns:
            (1, channels, height, width), and a number of pixels.
        """
        known = self.pixels >= 0
        values = (received - self.shift.to(received))[known] / self.scale.to(received)[known]
        flat = torch.zeros(self.shape[0] * self.shape[1] * self.shape[2], dtype=received.dtype, device=received.device)
        total = flat.index_add(0, self.pixels[known], values)
        times = flat.index_add(0, self.pixels[known], torch.ones_like(values))
        shown = times > 0
        pixels = torch.where(shown, total / times.clamp(min=1), (total[shown] / times[shown]).mean())
        return pixels.view(1, *self.shape), int((~shown).sum())

    def places(self) -> Tensor:
        """(patches, 3), where each patch lies: the mean channel, row and column of its pixels."""
        known = (self.pixels >= 0).double()
        flat = self.pixels.clamp(min=0)
        axes = (flat // (self.shape[1] * self.shape[2]), flat // self.shape[2] % self.shape[1], flat % self.shape[2])
        return torch.stack([(axis * known).sum(1) / known.sum(1).clamp(min=1) for axis in axes], dim=1)


def patch_layer(victim: Victim, model_trace: Trace) -> PatchLayer | Reason:
    """The layer that sees patches of the image; else why there is none, naming the layer that stands there.

    Args:
        victim: Public knowledge about the model.
        model_trace: A trace of the model.
    """
    name, reached, dropped = _first(victim)
    first = model_trace.first
    if first is None:
        return because("no-parameters")
    if reached is None or not (first.module is reached or isinstance(first.module, nn.Embedding)):
        return because("no-patch-layer", name=first.name, kind=type(first.module).__name__)
    if dropped:
        return because("first-layer-behind-dropout", name=dropped[0])
    if reason := _why_not_plain(victim, model_trace, name, reached):
        return reason
    shown = _shown_pixels(victim, reached)
    if shown is None:
        return because("no-patch-layer.unlike", name=name)
    pixels, scale, shift = shown
    return PatchLayer(name=name, module=reached, pixels=pixels, scale=scale, shift=shift, shape=victim.inputs.shape)


def sharing(model: nn.Module, parameter: Tensor) -> int:
    """How many modules have a parameter."""
    return sum(any(own is parameter for own in module._parameters.values()) for module in model.modules())


def _why_not_plain(victim: Victim, model_trace: Trace, name: str, layer: PatchModule) -> Reason | None:
    """Why the weight's gradient is not one product of output gradients and patches."""
    if not moves(layer, "weight"):
        still = any(run.module is layer for run in model_trace.frozen) or "weight" in layer._buffers
        if still:
            return because("first-layer-did-not-move", what="weight", name=name)
        return because("layer-weight-computed", name=name, kind=type(layer).__name__)
    runs = sum(run.module is layer for run in model_trace.layers)
    if runs > 1 or sharing(victim.model, layer.weight) > 1:
        return because("layer-shared", name=name)
    if not isinstance(layer, nn.Linear) and layer.groups > 1:
        return because("no-patch-layer.groups", name=name)
    return None


def _first(victim: Victim) -> tuple[str, PatchModule | None, list[str]]:
    """The first Linear or convolutional layer that runs, and the dropout layers that ran before it."""
    found: list[tuple[str, PatchModule]] = []
    dropped: list[str] = []

    def note(name: str, module: nn.Module) -> None:
        if isinstance(module, PatchModule):
            found.append((name, module))
            raise Arrived
        dropped.extend([name] if isinstance(module, _DROPOUT) and module.p > 0 else [])

    handles = [
        module.register_forward_pre_hook(lambda own, _, name=name: note(name, own))
        for name, module in victim.model.named_modules()
        if isinstance(module, PatchModule | _DROPOUT)
    ]
    _run(victim, torch.zeros(1, *victim.inputs.shape), handles)
    return (*found[0], dropped) if found else ("", None, dropped)


def _received(victim: Victim, layer: PatchModule, image: Tensor) -> Tensor | None:
    """(patches, numbers), what enters the layer for one image (1, channels, height, width)."""
    caught: list[Tensor] = []

    def catch(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
        caught.extend(value.detach().clone() for value in arguments[:1] if isinstance(value, Tensor))
        raise Arrived

    _run(victim, image, [layer.register_forward_pre_hook(catch)])
    return _patches(layer, caught[0]).double() if caught else None


def _run(victim: Victim, image: Tensor, handles: list[Any]) -> None:
    like = reference(victim.model)
    noise = torch.Generator(like.device).manual_seed(0)
    try:
        with torch.no_grad(), sample_noise(generator=noise):
            victim.model(image.to(like))
    except Arrived:
        pass
    finally:
        for handle in handles:
            handle.remove()


def _shown_pixels(victim: Victim, layer: PatchModule) -> tuple[Tensor, Tensor, Tensor] | None:
    """Pixel, scale and shift of each number that enters a layer; None where it is no pixel times a constant.

    Images of zeros and of ones tell the constants, one of the pixels' own numbers tells which pixel it is, and a random
    one confirms it.
    """
    shape, count = (1, *victim.inputs.shape), victim.inputs.channels * victim.inputs.height * victim.inputs.width
    numbers = torch.arange(count)
    probes = [torch.zeros(count), torch.ones(count), numbers // _DIGIT, numbers % _DIGIT]
    random = torch.randn(count, generator=torch.Generator().manual_seed(0))
    found = [_received(victim, layer, probe.float().view(shape)) for probe in (*probes, random)]
    if any(one is None or one.shape != found[0].shape for one in found if found[0] is not None) or found[0] is None:
        return None
    shift, ones, high, low, seen = (one for one in found if one is not None)
    scale = ones - shift
    known = scale.abs() > 1e-6 * scale.abs().max()
    high, low = (torch.where(known, (part - shift) / scale, 0).round().long() for part in (high, low))
    pixels = torch.where(known, high * _DIGIT + low, _NOT_IN_PATCHES)
    if bool((pixels >= count).any() | (pixels < _NOT_IN_PATCHES).any()) or not bool(known.any()):
        return None
    scale = torch.where(known, scale, 0)
    shown = scale * random.to(seen)[pixels.clamp(min=0)] + shift
    if not bool((shown - seen).abs().max() <= 1e-4 * seen.abs().max()):
        return None
    return pixels, scale, shift


def _patches(layer: PatchModule, received: Tensor) -> Tensor:
    """What each output of the layer sees of one image, (patches, numbers), in the order of its weight's rows."""
    if isinstance(layer, nn.Linear):
        return received.reshape(-1, layer.in_features)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    patches = F.pad(received, layer._reversed_padding_repeated_twice, mode=mode)
    axes = len(layer.kernel_size)
    for axis, (size, step, gap) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True), 2):
        patches = patches.unfold(axis, (size - 1) * gap + 1, step)[..., ::gap]
    order = (0, *range(2, 2 + axes), 1, *range(2 + axes, 2 + 2 * axes))
    return patches.permute(order).reshape(-1, layer.weight[0].numel())


def _rows(layer: PatchModule, returned: Tensor) -> Tensor:
    last: Callable[[Tensor], Tensor] = (lambda x: x) if isinstance(layer, nn.Linear) else lambda x: x.movedim(1, -1)
    return last(returned).reshape(-1, len(layer.weight))
