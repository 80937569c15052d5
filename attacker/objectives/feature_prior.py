"""The prior that known features give: what entered a layer of the client's model for its image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from attacker.gradients.batch_norm import batches_of
from attacker.gradients.checkpoints import without_checkpoints
from attacker.gradients.replay import Replay
from attacker.objectives.image_priors import Prior
from fl_precode.randomness.random_layers import sample_noise


class FeatureTarget(Prior):
    """``|f(x) - h|^2 / |h|^2`` for what enters a layer, f(x), and what is known to have entered it, h; sum over layers.

    The forward pass ends at the last of the layers.

    Args:
        replays: The victim's model, weights and buffers, for each victim.
        targets: Layer name to (victims, batch, features), what entered for the client's images, flattened.
        noise: (victims, batch, ...) for each random layer that runs before the last of the layers, in order of
            execution; that of later ones is not used.
        direction_only: Whether each image's features are known up to a factor: the penalty is then the squared sine of
            the angle between f(x) and h, a mean over the batch.
    """

    def __init__(
        self,
        replays: Sequence[Replay],
        targets: Mapping[str, Tensor],
        noise: Sequence[Tensor] = (),
        *,
        direction_only: bool = False,
    ) -> None:
        self._replays = list(replays)
        self._targets = dict(targets)
        self._noise = list(noise)
        self._direction_only = direction_only

    def keep(self, victims: Sequence[int], restarts: Sequence[Sequence[int]]) -> Self:
        """The same prior for some of the victims."""
        del restarts
        chosen = list(victims)
        return type(self)(
            [self._replays[index] for index in chosen],
            {name: value[chosen] for name, value in self._targets.items()},
            [value[chosen] for value in self._noise],
            direction_only=self._direction_only,
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Penalty of every candidate."""
        parts, first = [], 0
        for _, same in groupby(self._replays, key=id):  # one pass for all victims of the same round
            replays = list(same)
            parts.append(self._penalty(replays[0], images[first : first + len(replays)], first))
            first += len(replays)
        return torch.cat(parts)

    def _penalty(self, replay: Replay, images: Tensor, first: int) -> Tensor:
        victims, restarts, batch = images.shape[:3]
        rows = slice(first, first + victims)
        noise = [
            value[rows].to(images).unsqueeze(1).expand(-1, restarts, *value.shape[1:]).flatten(0, 2)
            for value in self._noise
        ]
        received = received_by(replay, images.flatten(0, 2), noise, batch=batch, layers=list(self._targets))
        total = images.new_zeros(victims, restarts)
        for name, target in self._targets.items():
            features = received[name].reshape(victims, restarts, batch, -1)
            wanted = target[rows].to(images).unsqueeze(1)
            if self._direction_only:
                total = total + (1 - torch.cosine_similarity(features, wanted, dim=3).square()).mean(dim=2)
                continue
            missed = (features - wanted).square().flatten(2).sum(dim=2)
            total = total + missed / wanted.square().flatten(2).sum(dim=2).clamp_min(torch.finfo(total.dtype).tiny)
        return total


def received_by(
    replay: Replay, flat: Tensor, noise: Sequence[Tensor], *, batch: int, layers: Sequence[str]
) -> Mapping[str, Tensor]:
    """What enters some layers, by name.

    Args:
        replay: The model, weights and buffers.
        flat: (n, channels, height, width), normalised.
        noise: Noise of random layers before the last of the layers.
        batch: Images that are normalised together, where the model normalises by the batch.
        layers: Their names.
    """
    model = replay.victim.model
    state = {**dict(model.named_buffers()), **replay.buffers, **replay.parameters}
    with _until(model, layers) as received, batches_of(model, batch), sample_noise(values=noise), without_checkpoints():
        functional_call(model, state, (flat,))
    return received


class _EnoughError(Exception):
    """All layers have received their input; what follows does not matter."""


@contextmanager
def _until(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Inputs of layers inside the block, which ends when the last of them runs."""
    received: dict[str, Tensor] = {}

    def note(name: str, arguments: tuple[Tensor, ...]) -> None:
        received[name] = arguments[0].clone()  # some layers overwrite what they are given
        if len(received) == len(layers):
            raise _EnoughError

    handles = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, arguments, name=name: note(name, arguments))
        for name in layers
    ]
    try:
        yield received
    except _EnoughError:
        pass
    finally:
        for handle in handles:
            handle.remove()
