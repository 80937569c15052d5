"""Parameters that a model uses itself, outside of any layer: class tokens, position embeddings, layer scales.

Every image of the flat batch gets a copy of its own, so that one backward pass gives the gradient of each. That needs a
parameter which a model combines with images by broadcasting, and which says along which axis:

* a first axis of one, as ``(1, tokens, features)``, stands for the images;
* ``(channels, 1, 1)`` scales or shifts the channels of images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Self

import torch
from torch import Tensor, nn

from attacker.gradients.ghost.layer_kinds import LayerProducts, LayerShare, covered, kind_of
from attacker.gradients.replay import Replay


def direct_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Parameters of modules that are no layers of a known kind, nor part of one, by name."""
    inside = covered(model)
    return {
        name: value
        for prefix, module in model.named_modules()
        if kind_of(module) is None and prefix not in inside
        for name, value in module.named_parameters(prefix, recurse=False)
    }


def is_by_image(parameter: Tensor) -> bool:
    """Whether its shape says how every image can get a copy."""
    by_channel = parameter.dim() == 3 and parameter.shape[1:] == (1, 1)
    return by_channel or (parameter.dim() > 1 and parameter.shape[0] == 1)


class DirectParameters:
    """Copies of direct parameters for the images of all candidates.

    Args:
        replays: One for each victim, at its weights, or the same for all.
        model: Whose parameters they are; those that no image can have a copy of are left out.

    Raises:
        ValueError: If one of those left out differs among the victims.
    """

    def __init__(self, replays: Sequence[Replay], model: nn.Module) -> None:
        shared = all(replay is replays[0] for replay in replays)
        self._values: dict[str, Tensor] = {}
        for name, parameter in direct_parameters(model).items():
            if is_by_image(parameter):
                values = [
                    replay.parameters.get(name, parameter).detach() for replay in (replays[:1] if shared else replays)
                ]
                self._values[name] = torch.stack([value if len(value) == 1 else value.unsqueeze(0) for value in values])
            elif not shared:
                raise ValueError(f"{name} cannot be given values of each victim")

    def copies(self, victims: int, images: int) -> dict[str, Tensor]:
        """A copy for every image, (victims * images, ...) by name, to differentiate by."""
        copies = {}
        for name, value in self._values.items():
            each = value.expand(victims, images, *value.shape[2:])
            # One storage for all images where the victims share the value.
            flat = each[0, :1].expand(victims * images, *value.shape[2:]) if len(value) == 1 else each.flatten(0, 1)
            copies[name] = flat.requires_grad_(True)
        return copies

    def keep(self, victims: Sequence[int]) -> Self:
        """Those of some of the victims; what is shared stays."""
        kept = copy(self)
        kept._values = {
            name: value if len(value) == 1 else value[list(victims)] for name, value in self._values.items()
        }
        return kept


class DirectProducts(LayerProducts):
    """The share of one direct parameter.

    Args:
        targets: Observed gradients, one for each victim.
    """

    def __init__(self, targets: Sequence[Tensor]) -> None:
        self.vectors = (torch.stack([target.flatten() for target in targets]),)

    def __call__(self, received: Tensor, delta: Tensor, victims: int, restarts: int) -> LayerShare:
        """Sums for ``delta``, the gradients of all copies; see `LayerProducts.__call__`."""
        del received
        return LayerShare([delta.reshape(victims, restarts, -1, self.vectors[0].shape[1]).sum(2)], None)


def mixed(at_one: Mapping[str, Tensor], at_other: Mapping[str, Tensor], position: Tensor) -> dict[str, Tensor]:
    """Copies ``a`` of the way from the others to the ones, for ``a`` (victims, restarts) in [0, 1]."""
    copies = {}
    for name, value in at_one.items():
        rows = position.to(value.dtype).flatten().repeat_interleave(len(value) // position.numel())
        copies[name] = torch.lerp(at_other[name], value, rows.reshape(-1, *[1] * (value.dim() - 1)))
    return copies
