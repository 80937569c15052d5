"""Check that an update can be the output of an announced filter of a deployed framework."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attacker.audit.inputs.outer_products import rounding_of
from attacker.reasons import Reason, because
from fl_precode.defences.flower_dp import CentralDp, LocalDp
from fl_precode.defences.nvflare_filters import PercentileFilter, SvtFilter
from fl_precode.defences.on_gradients import GradientDefence
from fl_precode.observation import Observation

_TOLERANCE = 1.001
"""By which rounding may lengthen what was clipped."""

_CHANCE = 6.0
"""Standard deviations of chance that an honest client is granted."""


def why_not_filtered(part: GradientDefence, observation: Observation) -> Reason | None:
    """What shows that the update did not pass a filter; None where nothing does.

    Args:
        part: The filter, the last of the announced defence.
        observation: One update. It holds the reply's parameters, so that a limit on all arrays is one on these.
    """
    numbers = torch.cat([value.detach().double().flatten().cpu() for value in observation.update.values()])
    # Weights were added and subtracted again; of a gradient the filter's own numbers are here.
    rounding = rounding_of(observation) if observation.kind == "weights" else 0.0
    if isinstance(part, LocalDp):
        return _too_long(part, numbers, rounding)
    if isinstance(part, CentralDp):
        adapts = part.side == "server" or part.quantile > 0
        if not adapts and float(numbers.norm()) > _TOLERANCE * part.clip + _of_rounding(numbers, rounding):
            return because("clipping-not-applied", largest=part.clip)
        return None
    if isinstance(part, PercentileFilter):
        return _not_cut(part, numbers, rounding, alone=not observation.buffers)
    return _not_sparse(part, numbers, rounding) if isinstance(part, SvtFilter) else None


def _too_long(part: LocalDp, numbers: Tensor, rounding: float) -> Reason | None:
    """Longer than the clip and the noise together can be but by a chance of one in a billion."""
    noise = part.std * (math.sqrt(len(numbers)) + _CHANCE)
    length = float(numbers.norm())
    if length <= _TOLERANCE * part.clip + noise + _of_rounding(numbers, rounding):
        return None
    return because("local-dp-not-applied", length=length, clip=part.clip, noise=noise)


def _of_rounding(numbers: Tensor, rounding: float) -> float:
    return rounding * math.sqrt(len(numbers))


def _not_cut(part: PercentileFilter, numbers: Tensor, rounding: float, *, alone: bool) -> Reason | None:
    """Larger numbers than the filter leaves, or fewer zeros; of buffers, which count as well, nothing is known here."""
    limit = part.gamma * part.steps
    largest = float(numbers.abs().max())
    if largest > _TOLERANCE * limit + 2 * rounding:
        return because("percentile-not-applied.larger", largest=largest, limit=limit)
    gone = (1 - part.share / 100) * (len(numbers) - 1)
    if alone and int((numbers == 0).sum()) < math.floor(gone / _TOLERANCE):
        return because("percentile-not-applied.zeros", share=100 - part.share)
    return None


def _not_sparse(part: SvtFilter, numbers: Tensor, rounding: float) -> Reason | None:
    """Fewer numbers of at most gamma, drawn and noisy or turned down, than the filter makes."""
    limit = part.gamma * part.steps
    small = int((numbers.abs() <= _TOLERANCE * limit + 2 * rounding).sum())
    count = part.sent_with_noise(len(numbers))
    # Of n draws with replacement among m accepted numbers about m (1 - exp(-n / m)) are different ones, with m of n at
    # least 63 %; fewer than half is no chance where there are many.
    if count < 100 or small >= count / 2:
        return None
    return because("svt-not-applied", small=small, limit=limit, count=count)
