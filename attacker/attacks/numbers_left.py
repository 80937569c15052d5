"""Numbers of an update that its announced defence left unchanged, which a search can trust."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from fl_precode.defences.nvflare_filters import PercentileFilter, SvtFilter
from fl_precode.defences.on_gradients import Prune
from fl_precode.defences.registry import gradient_defence
from fl_precode.observation import Observation
from fl_precode.spec import Spec

ADDS_NOISE: Final = frozenset({"noise", "laplace", "ppp", "local-dp"})
"""Defences that add noise to every number, or to some that nobody knows, by name."""

FILTERS: Final = frozenset({"percentile", "svt"})
"""Filters that leave some numbers as they were, and change others so that it can be seen, by name."""

_FEW: Final = 0.05
"""Of the numbers that a filter sent, as many as must be exact for the others to be left out."""


def numbers_left(observation: Observation, parts: Sequence[Spec]) -> Observation:
    """The update with zeros for numbers that the defence changed, where it can be seen which ones those are.

    Noise that came after pruning fills zeros in: the largest numbers of each tensor are taken to be those that were
    sent. A percentile filter cuts to ``gamma``: numbers there are larger by nobody knows how much. Sparse vectors have
    noise below ``gamma`` only. Where next to nothing would be left the update stays as it is.

    Args:
        observation: The update.
        parts: Parts of the announced defence whose meaning is known.
    """
    names = [part.name for part in parts]
    if "prune" in names and ADDS_NOISE & set(names[names.index("prune") :]):
        share = parts[names.index("prune")].number("share")
        if share is not None:
            pruned = Prune(share=share)(observation.update, generator=torch.Generator())
            return replace(observation, update=pruned)
    is_exact = _exactness(parts[-1]) if parts else None
    if is_exact is None:
        return observation
    exact = {name: is_exact(value, _rounding(observation, name)) for name, value in observation.update.items()}
    if not _enough(observation.update, exact):
        return observation
    return replace(
        observation,
        update={name: torch.where(exact[name], value, 0) for name, value in observation.update.items()},
    )


def mostly_cut(observation: Observation, parts: Sequence[Spec]) -> bool:
    """Whether a percentile filter cut nearly all that it sent to one magnitude, so that signs alone are left."""
    is_exact = _exactness(parts[-1]) if parts and parts[-1].name == "percentile" else None
    if is_exact is None:
        return False
    exact = {name: is_exact(value, _rounding(observation, name)) for name, value in observation.update.items()}
    return not _enough(observation.update, exact)


def _exactness(part: Spec) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Whether numbers are as they were before the last part, from them and their rounding; None where not known."""
    if part.name not in FILTERS:
        return None
    try:
        chain = gradient_defence(part.text)
    except ValueError:  # announced, and not one that exists
        return None
    settings = chain.parts[0] if chain is not None else None
    if isinstance(settings, PercentileFilter):
        limit = settings.gamma * settings.steps
        return lambda value, rounding: (value != 0) & (value.abs() < limit * (1 - 1e-6) - rounding)
    assert isinstance(settings, SvtFilter)
    largest_noisy = settings.gamma * settings.steps
    return lambda value, rounding: value.abs() > largest_noisy * (1 + 1e-6) + rounding


def _rounding(observation: Observation, name: str) -> Tensor:
    """What an update of weights is off by: the received weights were added, and taken away again."""
    parameter = observation.parameters[name]
    if observation.kind == "gradient":
        return torch.zeros((), device=parameter.device)
    return torch.finfo(parameter.dtype).eps * parameter.abs()


def _enough(update: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> bool:
    sent = sum(int((value != 0).sum()) for value in update.values())
    return sum(int(value.sum()) for value in exact.values()) > _FEW * sent
