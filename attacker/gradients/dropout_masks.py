"""Dropout whose masks are given, so that an attack can search for those that a client drew."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor, nn

from fl_precode.randomness.random_layers import RandomLayer

_WHOLE_MAPS = nn.Dropout1d | nn.Dropout2d | nn.Dropout3d
_DROPOUT = nn.Dropout | _WHOLE_MAPS


class MaskedDropout(RandomLayer):
    """``hidden * mask / (1 - p)`` for the mask that `fl_precode.randomness.random_layers.sample_noise` is given.

    Without a given mask everything passes, as through dropout in evaluation mode.

    Attributes:
        p: Share that the client's layer sets to zero, in (0, 1).
        whole_maps: Whether a mask has one number for each channel, and not for each number.
    """

    def __init__(self, layer: _DROPOUT) -> None:
        super().__init__()
        self.p = float(layer.p)
        self.whole_maps = isinstance(layer, _WHOLE_MAPS)

    def forward(self, hidden: Tensor) -> Tensor:
        """The masked input, in its shape."""
        mask = self.given(hidden.new_empty(len(hidden), *self.latent_shape(hidden.shape[1:])))
        return hidden if mask is None else hidden * mask / (1 - self.p)

    def latent_shape(self, hidden: Sequence[int]) -> tuple[int, ...]:
        """Shape of an image's mask."""
        return (hidden[0], *[1] * (len(hidden) - 1)) if self.whole_maps else tuple(hidden)


def dropout_layers(model: nn.Module) -> list[str]:
    """Names of the layers that drop something while clients compute gradients, but not all."""
    return [name for name, module in model.named_modules() if isinstance(module, _DROPOUT) and 0 < module.p < 1]


def with_masks(model: nn.Module) -> nn.Module:
    """A copy of a model in which the masks of `dropout_layers` can be given; it shares parameters, by their names.

    Dropout by function (``torch.nn.functional.dropout``) is no layer and cannot be found.
    """
    names = dropout_layers(model)
    changed = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
    for name in names:
        parent, _, child = name.rpartition(".")
        layer = changed.get_submodule(name)
        assert isinstance(layer, _DROPOUT)
        if not name:
            return MaskedDropout(layer)
        setattr(changed.get_submodule(parent), child, MaskedDropout(layer))
    return changed


def dropped_share(masks: Tensor) -> Tensor:
    """Share of each candidate's mask (victims, restarts, batch, ...) that is set to zero, (victims, restarts)."""
    return 1 - masks.flatten(2).mean(dim=2)
