"""Innocent reasons for an update that is more than the outer products of its inputs, and their traces.

Each reason is seen, excluded, or neither: then it stays possible. Only what no reason explains contradicts a client
that announced no noise.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from attacker.audit.inputs.outer_products import Beyond
from attacker.gradients.observed import steps_behind
from fl_precode.observation import Observation
from fl_precode.tape.optimiser_traces import optimiser_trace

State = Literal["seen", "possible", "excluded", "denied"]

_TRACE_FADES: Final = 12
"""Steps after which Adam may leave no trace that could be missed."""

_HALVES: Final = {torch.bfloat16: "bfloat16", torch.float16: "half precision"}
"""The coarser grid first: nearly all of its numbers are on the finer one as well."""

_ON_GRID: Final = 0.99
"""Share of the numbers that lie on a grid; of others one in some hundreds does by chance."""

_LOOKED_AT: Final = 20_000

_CAPPED: Final = 0.01
"""Share of a layer's entries that have the largest size of all exactly when entries were capped."""

_SPARSE: Final = 0.02


@dataclass(frozen=True)
class InnocentReason:
    """Something honest that may be behind an update.

    Attributes:
        name: Such as ``weight decay``.
        state: Whether the update shows it (``seen``), speaks against it, or leaves it open; ``denied`` when it shows,
            and the opposite was announced.
        because: What shows; one clause.
    """

    name: str
    state: State
    because: str


def innocent_reasons(observation: Observation, beyond: Beyond) -> list[InnocentReason]:
    """The reasons that there can be for what stands beyond the outer products of a layer's inputs.

    Where one is seen it is the only one: it makes the traces of others meaningless.

    Args:
        observation: One update.
        beyond: What stands beyond in one of its layers.
    """
    name = f"{beyond.layer}.weight" if beyond.layer else "weight"
    rounded = _low_precision(observation, beyond, name)
    reasons = [
        _capped(observation, name),
        _adaptive(observation),
        _penalty(observation, beyond),
        rounded,
        _sparse(observation.update[name], observation.parameters[name]),
        _more_inputs(beyond, sure=rounded.state == "excluded"),
    ]
    decisive = next((reason for reason in reasons if reason.state in ("denied", "seen")), None)
    return reasons if decisive is None else [decisive]


def half_precision(observation: Observation, names: Collection[str] = ()) -> tuple[torch.dtype, float] | None:
    """The 16-bit type on whose grid the numbers that were computed or sent lie, and their root mean square.

    These are the update itself or the weights that were sent back.

    Args:
        observation: One update.
        names: Parameters that are looked at; all without any.

    Returns:
        None when they lie on no such grid.
    """
    chosen = names or observation.update
    update = torch.cat([_some(observation.update[name]).double() for name in chosen])
    candidates = [update]
    if observation.kind == "weights":
        candidates.append(torch.cat([_some(observation.parameters[name]).double() for name in chosen]) + update)
    for flat in candidates:
        for kind in _HALVES:
            if _on_grid(flat, kind):
                return kind, float(flat.square().mean().sqrt())
    return None


def _some(value: Tensor) -> Tensor:
    """Numbers of a tensor, evenly chosen, that are enough to tell how its values are spread."""
    flat = value.flatten()
    return flat[:: max(1, len(flat) // _LOOKED_AT)]


def _on_grid(values: Tensor, kind: torch.dtype) -> bool:
    values = values[values != 0]
    near = (values.to(kind).double() - values).abs() <= 1e-6 * values.abs()
    return len(values) > 0 and float(near.double().mean()) >= _ON_GRID


def _penalty(observation: Observation, beyond: Beyond) -> InnocentReason:
    if beyond.penalty is None:
        return InnocentReason(
            "weight decay", "excluded", "no multiple of the weights or of their signs accounts for it"
        )
    what, times = beyond.penalty
    steps, rate = steps_behind(observation), observation.protocol.learning_rate
    factor = abs(times) if observation.kind == "gradient" else abs(times) / (steps * rate) if steps and rate else None
    as_said = "" if factor is None or what == "signs" else f", as a weight-decay of {factor:.2g} leaves it"
    name = "weight decay" if what == "weights" else "an L1 penalty"
    of_what = "the weights" if what == "weights" else "the weights' signs"
    return InnocentReason(name, "seen", f"nearly nothing remains without {times:.2g} times {of_what}{as_said}")


def _adaptive(observation: Observation) -> InnocentReason:
    name = "an adaptive optimiser (Adam, AdamW, RMSprop)"
    if observation.kind == "gradient":
        return InnocentReason(name, "excluded", "a gradient was sent, which no optimiser has touched")
    steps = steps_behind(observation)
    trace = optimiser_trace(observation.update, steps=steps, learning_rate=None)
    if trace is not None and trace.optimiser == "adam" and observation.protocol.optimiser == "sgd":
        return InnocentReason(name, "denied", f"SGD was announced, and yet {trace.evidence}")
    if trace is not None and trace.optimiser == "adam":
        return InnocentReason(name, "seen", trace.evidence)
    if observation.protocol.optimiser == "sgd":
        return InnocentReason(name, "excluded", "SGD was announced")
    if trace is None or steps is None or steps > _TRACE_FADES:
        return InnocentReason(name, "possible", "its traces cannot be looked for in this update")
    return InnocentReason(name, "excluded", "its traces are not there")


def _low_precision(observation: Observation, beyond: Beyond, name: str) -> InnocentReason:
    words = "low precision"
    steps = steps_behind(observation) or 1
    grid = half_precision(observation, [name])
    if grid is not None:
        kind, usual = grid
        if beyond.rest <= steps * torch.finfo(kind).eps * usual:
            return InnocentReason(
                words, "seen", f"the numbers lie on the grid of {_HALVES[kind]}, whose rounding is as large"
            )
    if beyond.share <= steps**0.5 * torch.finfo(torch.bfloat16).eps / 2:  # half a digit in each step
        return InnocentReason(words, "possible", "what remains is no larger than the rounding of 16 bits")
    return InnocentReason(words, "excluded", "what remains is larger than the rounding of 16 bits")


def _more_inputs(beyond: Beyond, *, sure: bool) -> InnocentReason:
    name = "more inputs than were announced (augmentation, further passes, momentum or corrections of earlier rounds)"
    if beyond.rank is not None and sure:
        return InnocentReason(
            name, "seen", f"the update is a sum of {beyond.rank} outer products, and noise is no sum of few"
        )
    if beyond.evenly:
        return InnocentReason(name, "excluded", "what remains fills all directions alike, as independent noise does")
    return InnocentReason(name, "possible", "what remains prefers some directions, which independent noise does not")


def _capped(observation: Observation, name: str) -> InnocentReason:
    words = "a cap on each entry of the gradient"
    sizes, largest = _some(observation.update[name]).abs(), float(observation.update[name].abs().max())
    step = torch.finfo(sizes.dtype).eps * largest
    if observation.kind == "weights":  # of weights that were added and subtracted the last digits differ
        step += torch.finfo(sizes.dtype).eps * float(observation.parameters[name].abs().max())
    at_most = sizes >= largest - 4 * step
    share = float(at_most.double().mean())
    below = sizes[~at_most & (sizes > 0)]
    if share < _CAPPED or not len(below) or float((below > largest / 2).double().mean()) > 0.5:
        return InnocentReason(words, "excluded", "the largest entries differ, or all are as large")
    return InnocentReason(words, "seen", f"{share:.0%} of the entries have the largest size exactly")


def _sparse(change: Tensor, weight: Tensor) -> InnocentReason:
    name = "masked weights"
    still = change == 0
    if float(still.double().mean()) > _SPARSE and float((weight[still] == 0).double().mean()) > _ON_GRID:
        return InnocentReason(name, "seen", "the entries that did not move are weights of zero")
    return InnocentReason(name, "excluded", "no weights of zero stayed where they are")
