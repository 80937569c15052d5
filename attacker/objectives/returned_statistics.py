"""Distance of candidates to the statistics that a client returned, layer by layer: no gradient is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.func import functional_call

from attacker.gradients.batch_norm import batches_of, with_batch_statistics, with_known_statistics
from attacker.gradients.checkpoints import without_checkpoints
from attacker.gradients.replay import Replay
from attacker.gradients.returned_statistics import LayerStatistics, normalised_by_returned, returned_statistics
from attacker.objectives.bn_statistics_prior import inputs_of_layers
from attacker.objectives.image_priors import Prior
from attacker.reasons import Reason, because
from attacker.victim import Victim
from fl_precode.defences.precode import sample_noise
from fl_precode.observation import Observation


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchTarget:
    """The statistics of one client's batches, and the model that candidates pass to be compared with them.

    Attributes:
        replay: A victim whose layers normalise by what is known of the batch where that is one, and by the candidate's
            own batches otherwise; with weights and buffers.
        layers: What was returned, by layer.
        images: Images of one batch.
        shares: Shares of the batches of one pass over the images, by layer; they sum to 1.
        eps: Epsilon of the layers, by name.
    """

    replay: Replay
    layers: Mapping[str, LayerStatistics]
    images: int
    shares: Mapping[str, tuple[float, ...]]
    eps: Mapping[str, float]

    @classmethod
    def of(cls, victim: Victim, observation: Observation) -> BatchTarget | Reason:
        """What was returned, or why nothing can be compared with it.

        Args:
            victim: The model as it is known.
            observation: With the buffers as they were sent, and as they were returned.
        """
        found = returned_statistics(victim.model, observation)
        if isinstance(found, Reason):
            return found
        if observation.batch_size is None:
            return because("batch-size-unknown")
        passes = max(len(layer.weights) for layer in found.values())
        size = _images_of_a_batch(observation, passes)
        if size is None:
            return because("statistics-mixed.uneven", passes=passes)
        parts = observation.batch_size // size
        shares = {name: tuple(sum(layer.weights[k::parts]) for k in range(parts)) for name, layer in found.items()}
        if passes == 1:
            model, seen = with_known_statistics(victim.model, found), normalised_by_returned(victim.model, observation)
        else:
            model, seen = with_batch_statistics(victim.model), observation
        own = dict(model.named_buffers()).keys() | dict(model.named_parameters()).keys()
        buffers = {name: value for name, value in seen.buffers.items() if name in own}
        return cls(
            replay=Replay(replace(victim, model=model), observation.parameters, buffers),
            layers=found,
            images=size,
            shares=shares,
            eps={name: float(victim.model.get_submodule(name).eps) for name in found},  # type: ignore[arg-type]
        )


class ReturnedStatistics(Prior):
    """Distance of a candidate's statistics to the returned ones, in standard deviations of the client's batch.

    The mean over layers and channels of ``((m - m*) / s*)^2 + ((s - s*) / s*)^2``, where m and s are mean and standard
    deviation (unbiased) of what enters the layer and the starred ones the client's. Of several local steps the means
    over the batches are compared, at the weights that were sent: later steps had others. Bottlenecks run without noise.

    Args:
        targets: Targets of each victim.
        latents: Shape of each bottleneck's noise for one image, in order of execution.
    """

    def __init__(self, targets: Sequence[BatchTarget], *, latents: Sequence[Sequence[int]] = ()) -> None:
        self._targets = list(targets)
        self._latents = list(latents)

    def keep(self, victims: Sequence[int], restarts: Sequence[Sequence[int]]) -> Self:
        """The same prior for some of the victims."""
        del restarts
        return type(self)([self._targets[index] for index in victims], latents=self._latents)

    def __call__(self, images: Tensor) -> Tensor:
        """Penalty of every candidate."""
        each = [self.residuals(victim, own).square().sum(dim=1) for victim, own in enumerate(images)]
        return torch.stack(each)

    def residuals(self, victim: int, images: Tensor) -> Tensor:
        """Differences of all layers in standard deviations, (restarts, numbers), weighted as their squares are summed.

        Args:
            victim: Its place.
            images: (restarts, batch, channels, height, width) of its candidates.
        """
        target = self._targets[victim]
        rows = []
        for name, mean, variance in self._measured(target, images):
            wanted, eps = target.layers[name], target.eps[name]
            scale = (wanted.variance.to(images) + eps).sqrt()
            spread = (variance + eps).sqrt()
            weight = (len(target.layers) * len(scale)) ** -0.5
            rows += [weight * (mean - wanted.mean.to(images)) / scale, weight * (spread - scale) / scale]
        return torch.cat(rows, dim=1)

    def _measured(self, target: BatchTarget, images: Tensor) -> list[tuple[str, Tensor, Tensor]]:
        """Layers with means and unbiased variances, (restarts, channels) each, of batches with their shares."""
        restarts, flat = len(images), images.flatten(0, 1)
        replay = target.replay
        model = replay.victim.model
        state = {**dict(model.named_buffers()), **replay.buffers, **replay.parameters}
        noise = [flat.new_zeros(len(flat), *latent) for latent in self._latents]
        with (
            inputs_of_layers(model, target.layers) as received,
            batches_of(model, target.images),
            sample_noise(values=noise),
            without_checkpoints(),
        ):
            functional_call(model, state, (flat,))
        measured = []
        for name, values in received:
            batches = values.reshape(restarts, -1, target.images, values.shape[1], values[0, 0].numel())
            variance, mean = torch.var_mean(batches, dim=(2, 4), correction=1)
            shares = mean.new_tensor(target.shares[name]).view(1, -1, 1)
            measured.append((name, (mean * shares).sum(dim=1), (variance * shares).sum(dim=1)))
        return measured


def why_no_returned_statistics(victim: Victim, observation: Observation) -> Reason | None:
    """Why `ReturnedStatistics` has nothing to compare with, or None when it has."""
    target = BatchTarget.of(victim, observation)
    return target if isinstance(target, Reason) else None


def returned_prior(
    victim: Victim, observations: Sequence[Observation], *, latents: Sequence[Sequence[int]] = ()
) -> ReturnedStatistics:
    """The prior of what was returned from each client.

    Args:
        victim: The model as it is known.
        observations: With all their buffers; `why_no_returned_statistics` has nothing against any.
        latents: As for `ReturnedStatistics`.

    Raises:
        ValueError: If it has.
    """
    targets = []
    for observation in observations:
        target = BatchTarget.of(victim, observation)
        if isinstance(target, Reason):
            raise ValueError(f"nothing to compare with: {target}")
        targets.append(target)
    return ReturnedStatistics(targets, latents=latents)


def _images_of_a_batch(observation: Observation, passes: int) -> int | None:
    """Images of each batch behind the statistics; None where they are not known to be of equal size."""
    images = observation.batch_size
    if images is None or passes == 1 or images == 1:
        return images
    size = observation.protocol.batch_size
    if size is None or images % min(size, images):
        return None
    return min(size, images)
