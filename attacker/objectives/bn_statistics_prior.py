"""The prior that BatchNorm's running statistics give: what the clients' images look like on average, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Self

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from attacker.gradients.checkpoints import without_checkpoints
from attacker.gradients.replay import Replay
from attacker.objectives.image_priors import Prior
from attacker.reasons import Reason, because
from fl_precode.defences.precode import sample_noise


def why_no_batch_statistics(model: nn.Module, buffers: Mapping[str, Tensor]) -> Reason | None:
    """Why the prior has nothing to compare with, or None when it has.

    Args:
        model: Model of the victim.
        buffers: Those that were observed.
    """
    layers = _normalised_layers(model)
    if not layers:
        return because("statistics-missing")
    missing = [name for name in layers if f"{_prefix(name)}running_mean" not in buffers]
    return because("statistics-missing.not-sent", names=missing[:4]) if missing else None


class BatchStatistics(Prior):
    """Distance of a candidate's statistics at every BatchNorm layer to the running ones (Yin et al., CVPR 2021).

    The sum over the layers of ``|mean - running mean| + |variance - running variance|``, Euclidean norms over the
    channels; means and variances (divided by the number of values) are those of the layer's input, over the images and
    pixels of one candidate. The running statistics average over the images of all clients; for one image they are a
    rough guess. Bottlenecks run without noise.

    Args:
        replays: The victim's model, weights and buffers, for each victim.
        latents: Shape of each bottleneck's noise for one image, in order of execution.
    """

    def __init__(self, replays: Sequence[Replay], *, latents: Sequence[Sequence[int]] = ()) -> None:
        self._replays = list(replays)
        self._latents = list(latents)

    def keep(self, victims: Sequence[int], restarts: Sequence[Sequence[int]]) -> Self:
        """The same prior for some of the victims."""
        del restarts
        return type(self)([self._replays[index] for index in victims], latents=self._latents)

    def __call__(self, images: Tensor) -> Tensor:
        """Penalty of every candidate."""
        parts, first = [], 0
        for _, same in groupby(self._replays, key=id):  # one pass for all victims of the same round
            replays = list(same)
            parts.append(self._penalty(replays[0], images[first : first + len(replays)]))
            first += len(replays)
        return torch.cat(parts)

    def _penalty(self, replay: Replay, images: Tensor) -> Tensor:
        axes, flat = images.shape[:3], images.flatten(0, 2)
        model = replay.victim.model
        state = {**dict(model.named_buffers()), **replay.buffers, **replay.parameters}
        noise = [flat.new_zeros(len(flat), *latent) for latent in self._latents]
        total = images.new_zeros(axes[:2])
        with (
            inputs_of_layers(model, list(_normalised_layers(model))) as received,
            sample_noise(values=noise),
            without_checkpoints(),
        ):
            functional_call(model, state, (flat,))
        for name, values in received:
            by_channel = values.reshape(*axes, values.shape[1], -1).transpose(2, 3).flatten(3)  # (v, r, c, b * pixels)
            variance, mean = torch.var_mean(by_channel, dim=3, correction=0)
            for measured, statistic in ((mean, "running_mean"), (variance, "running_var")):
                wanted = state[f"{_prefix(name)}{statistic}"].detach()
                total = total + torch.linalg.vector_norm(measured - wanted, dim=2)
        return total


@contextmanager
def inputs_of_layers(model: nn.Module, names: Iterable[str]) -> Iterator[list[tuple[str, Tensor]]]:
    """Names and inputs of the named layers that run inside the block, in order of execution."""
    received: list[tuple[str, Tensor]] = []

    def note(name: str, arguments: tuple[Tensor, ...]) -> None:
        # A copy: some layers overwrite what they are given.
        received.append((name, arguments[0].clone()))

    handles = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, arguments, name=name: note(name, arguments))
        for name in names
    ]
    try:
        yield received
    finally:
        for handle in handles:
            handle.remove()


def _normalised_layers(model: nn.Module) -> dict[str, _BatchNorm]:
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    }


def _prefix(name: str) -> str:
    return f"{name}." if name else ""
