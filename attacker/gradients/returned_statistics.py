"""Statistics of a client's batches from its returned running statistics: exactly those of the batch after one step.

Batch normalisation in training mode moves each running mean and variance r by ``r <- (1 - m) r + m s`` at every forward
pass, where s is the statistic of the batch and m the layer's public momentum. A server that knows r before and after
has ``s`` after one pass, and after more a mean of the passes with known weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from attacker.gradients.batch_norm import batch_norms
from attacker.gradients.observed import steps_behind
from attacker.reasons import Reason, because
from fl_precode.observation import Observation


@dataclass(frozen=True, kw_only=True)
class LayerStatistics:
    """Statistics of what entered one layer, over the images and places of a batch.

    Attributes:
        mean: (channels,).
        variance: (channels,), unbiased, as running buffers collect it.
        weights: Share of each forward pass in both, in their order; they sum to 1.
    """

    mean: Tensor
    variance: Tensor
    weights: tuple[float, ...]

    @property
    def of_one_batch(self) -> bool:
        """Whether they are those of a single batch and nothing else."""
        return len(self.weights) == 1


def pass_weights(momentum: float | None, passes: int, *, counted: int = 0) -> tuple[float, tuple[float, ...]]:
    """What is left of a running statistic after some forward passes, and what each of them added to it.

    Args:
        momentum: Momentum of the layer; None for a cumulative mean of all batches.
        passes: 1 or more.
        counted: Passes before these, which a cumulative mean counts.

    >>> pass_weights(0.5, 2)
    (0.25, (0.25, 0.5))
    >>> pass_weights(None, 2, counted=2)
    (0.5, (0.25, 0.25))
    """
    if momentum is None:
        whole = counted + passes
        return counted / whole, (1 / whole,) * passes
    return (1 - momentum) ** passes, tuple(momentum * (1 - momentum) ** (passes - 1 - k) for k in range(passes))


def returned_statistics(model: nn.Module, observation: Observation) -> Mapping[str, LayerStatistics] | Reason:
    """Statistics of the client's batches by layer, or why the returned buffers do not tell them.

    Layers whose running statistics did not move are left out: the client normalised by them, or never ran them.

    Args:
        model: The victim's, whose layers say their momentum.
        observation: Buffers as they were sent, and as they were returned.
    """
    names = batch_norms(model)
    if not names:
        return because("statistics-missing")
    back = [name for name in names if _sent_and_returned(name, observation)]
    if not back:
        return because("statistics-not-returned", names=names[:4])
    found: dict[str, LayerStatistics] = {}
    for name in back:
        if not _moved(name, observation):
            continue
        statistics = _of_layer(name, model.get_submodule(name), observation)
        if isinstance(statistics, Reason):
            return statistics
        found[name] = statistics
    return found or because("statistics-not-returned.still")


def why_not_one_batch(model: nn.Module, observation: Observation) -> Reason | None:
    """Why a replay cannot normalise by the returned buffers; None when they tell all that normalised the batch."""
    statistics = returned_statistics(model, observation)
    if isinstance(statistics, Reason):
        return statistics
    absent = [name for name in batch_norms(model) if not _sent_and_returned(name, observation)]
    if absent:
        return because("statistics-not-returned", names=absent[:4])
    passes = max(len(layer.weights) for layer in statistics.values())
    return because("statistics-mixed", passes=passes) if passes > 1 else None


def normalised_by_returned(model: nn.Module, observation: Observation) -> Observation:
    """The observation with the statistics of its batch in place of the running ones, variances unbiased.

    Args:
        model: The victim's.
        observation: Observation of one batch; `why_not_one_batch` has nothing against it.

    Raises:
        ValueError: If it has.
    """
    statistics = returned_statistics(model, observation)
    if isinstance(statistics, Reason):
        raise ValueError(f"nothing to normalise by: {statistics}")
    exact = {
        f"{_prefix(name)}{buffer}": value
        for name, layer in statistics.items()
        for buffer, value in (("running_mean", layer.mean), ("running_var", layer.variance))
    }
    return replace(observation, buffers={**observation.buffers, **exact})


def _of_layer(name: str, layer: nn.Module, observation: Observation) -> LayerStatistics | Reason:
    passes = _passes(name, observation)
    if passes is None:
        return because("statistics-uncounted")
    momentum: float | None = layer.momentum  # type: ignore[assignment]
    counter = observation.buffers.get(f"{_prefix(name)}num_batches_tracked")
    if momentum is None and counter is None:
        return because("statistics-uncounted.before", name=name)
    kept, added = pass_weights(momentum, passes, counted=0 if counter is None else int(counter))
    share = sum(added)
    if not share:
        return because("statistics-unexplained", name=name, passes=passes)
    mean, variance = (
        ((after.double() - kept * before.double()) / share).to(after.dtype)
        for before, after in (_pair(name, buffer, observation) for buffer in ("running_mean", "running_var"))
    )
    if not bool(mean.isfinite().all() and variance.isfinite().all()) or _negative(name, variance, share, observation):
        return because("statistics-unexplained", name=name, passes=passes)
    weights = tuple(weight / share for weight in added)
    return LayerStatistics(mean=mean, variance=variance.clamp_min(0.0), weights=weights)


def _negative(name: str, variance: Tensor, share: float, observation: Observation) -> bool:
    """Whether a variance is below zero by more than rounding of the buffers explains."""
    before, after = _pair(name, "running_var", observation)
    rounding = 8 * torch.finfo(after.dtype).eps * torch.maximum(before.abs(), after.abs()) / share
    return bool((variance < -rounding).any())


def _passes(name: str, observation: Observation) -> int | None:
    """Forward passes in training mode: as the layer counted them, else the announced steps."""
    counter = f"{_prefix(name)}num_batches_tracked"
    before, after = observation.buffers.get(counter), observation.returned.get(counter)
    counted = 0 if before is None or after is None else int(after) - int(before)
    return counted if counted > 0 else steps_behind(observation)


def _sent_and_returned(name: str, observation: Observation) -> bool:
    return all(
        f"{_prefix(name)}{buffer}" in values
        for buffer in ("running_mean", "running_var")
        for values in (observation.buffers, observation.returned)
    )


def _moved(name: str, observation: Observation) -> bool:
    pairs = (_pair(name, buffer, observation) for buffer in ("running_mean", "running_var"))
    return any(not torch.equal(before, after) for before, after in pairs)


def _pair(name: str, buffer: str, observation: Observation) -> tuple[Tensor, Tensor]:
    key = f"{_prefix(name)}{buffer}"
    return observation.buffers[key], observation.returned[key]


def _prefix(name: str) -> str:
    return f"{name}." if name else ""
