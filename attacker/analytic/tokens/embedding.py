"""Embedding of the pixels in the first block's tokens: constants, and the patch layer's weight times a patch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from attacker.analytic.patches.patch_layer import PatchLayer, PatchModule

_AGREES: Final = 1e-6


@dataclass(frozen=True, kw_only=True)
class TokenEmbedding:
    """``z_t = constants_t + weight @ x_t`` with x_t a patch as the patch layer receives it; special tokens have none.

    Attributes:
        constants: (tokens, width), of all tokens in the block's order.
        weight: (width, numbers), the patch layer's, with what the tokens are multiplied by.
        special: Places of class and register tokens.
        places: Places of patches.
        patch: (places,), which patch of the patch layer each is.
    """

    constants: Tensor
    weight: Tensor
    special: Tensor
    places: Tensor
    patch: Tensor

    def tokens(self, patches: Tensor) -> Tensor:
        """(images, tokens, width) of patches (images, places, numbers), in the order of `places`."""
        values = self.constants.expand(len(patches), -1, -1).clone()
        values[:, self.places] += patches @ self.weight.T
        return values

    def in_layer_order(self, patches: Tensor) -> Tensor:
        """Patches of one image (places, numbers), in the order of the patch layer."""
        ordered = torch.zeros_like(patches)
        ordered[self.patch] = patches
        return ordered


def find_embedding(model: nn.Module, layer: PatchLayer, probe: Tensor, tokens: Tensor) -> TokenEmbedding | None:
    """Constants and weight behind tokens; None where they are not affine in the patches, one patch each.

    Args:
        model: At the weights of the update.
        layer: Where patches enter it.
        probe: (images, channels, height, width), two images at least.
        tokens: (images, tokens, width), what enters the first block for them.
    """
    module = model.get_submodule(layer.name)
    assert isinstance(module, PatchModule)
    returned: list[Tensor] = []

    def keep(_module: nn.Module, _arguments: tuple[Any, ...], output: Tensor) -> None:
        returned.extend(output.detach().clone())

    handle = module.register_forward_hook(keep)
    with torch.no_grad():
        model(probe)
    handle.remove()
    if len(returned) < len(probe):
        return None
    weight = module.weight.detach().reshape(layer.width, -1)
    bias = weight.new_zeros(len(weight)) if module.bias is None else module.bias.detach()
    outputs = [layer.outputs(one[None]) for one in returned[:2]]  # (patches, width) each
    moved, by_patch = tokens[0] - tokens[1], outputs[0] - outputs[1]
    size = moved.norm(dim=1)
    special = size <= _AGREES * size.max()
    likeness = moved @ by_patch.T / (by_patch.norm(dim=1).square()).clamp_min(1e-300)
    match = (likeness / (size[:, None] / by_patch.norm(dim=1))).nan_to_num().abs().argmax(dim=1)
    places = (~special).nonzero().flatten()
    patch = match[places]
    if len(places) != len(by_patch) or len(torch.unique(patch)) != len(patch):
        return None
    factor = likeness[places, patch].mean()
    if not bool((moved[places] - factor * by_patch[patch]).abs().max() <= _AGREES * size.max()):
        return None
    constants = tokens[0].clone()
    constants[places] -= factor * (outputs[0][patch] - bias)
    return TokenEmbedding(
        constants=constants,
        weight=factor * weight,
        special=special.nonzero().flatten(),
        places=places,
        patch=patch,
    )
