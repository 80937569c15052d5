"""Frozen Linear layers with a trained low-rank branch beside them, found by running the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from attacker.analytic.spans.stacked_layers import LinearRun, linear_runs
from attacker.gradients.trace import Trace, trace
from attacker.gradients.uncompared_parameters import moves, owns
from attacker.model_copy import copied
from attacker.victim import Victim
from fl_precode.observation import Observation
from fl_precode.randomness.random_layers import sample_noise

_AGREES: Final = 1e-5
"""Share of an output by which it may differ from what the branch's formula gives: float32 rounding."""


@dataclass(frozen=True, kw_only=True)
class LowRankBranch:
    """A module that returns ``W x + b + scale * up(down(x))`` with W and b frozen (Hu et al., ICLR 2022).

    Attributes:
        name: Name of the module.
        base: Name of the frozen layer in it.
        down: Name of the layer from its features to the rank, without a bias.
        up: Name of the layer from the rank to its outputs, without a bias.
        scale: What the branch is multiplied by; 1 where ``up`` is zero, which does not tell it.
        positions: Vectors of features that enter it for one image.
    """

    name: str
    base: str
    down: str
    up: str
    scale: float
    positions: int


def low_rank_branches(victim: Victim, observation: Observation) -> list[LowRankBranch]:
    """All of them, in order of execution.

    Args:
        victim: Public knowledge about the model; what did not move is a constant of it.
        observation: Says the weights, at which branches do something.
    """
    if not any(_is_frozen(module) for module in victim.model.modules() if isinstance(module, nn.Linear)):
        return []  # without a pass, which takes seconds where the model is large
    victim = replace(victim, model=copied(victim.model))
    victim.model.load_state_dict({**observation.buffers, **observation.parameters}, strict=False)
    model_trace = trace(victim)
    runs = [run for run in linear_runs(victim, model_trace) if isinstance(run.module, nn.Linear)]
    alone = [run for run in runs if sum(other.module is run.module for other in runs) == 1]
    found = []
    for down in alone:
        up = next((run for run in alone if _follows(run, down)), None)
        if up is None or not (_is_factor(down) and _is_factor(up) and moves(up.module, "weight")):
            continue
        for base in alone:
            if not _stands_beside(base, down, up):
                continue
            branch = _checked(victim, model_trace, base, down, up)
            if branch is not None:
                found.append(branch)
                break
    return found


def _is_frozen(layer: nn.Module) -> bool:
    return not moves(layer, "weight") and not moves(layer, "bias")


def _is_factor(run: LinearRun) -> bool:
    return not owns(run.module, "bias")


def _follows(run: LinearRun, down: LinearRun) -> bool:
    return run.received.shape == down.returned.shape and torch.equal(run.received, down.returned)


def _stands_beside(base: LinearRun, down: LinearRun, up: LinearRun) -> bool:
    return (
        base.module is not down.module
        and _is_frozen(base.module)
        and base.returned.shape == up.returned.shape
        and base.received.shape == down.received.shape
        and torch.equal(base.received, down.received)
    )


def _checked(
    victim: Victim, model_trace: Trace, base: LinearRun, down: LinearRun, up: LinearRun
) -> LowRankBranch | None:
    """The branch, if the smallest module that holds all three layers is their sum; else None."""
    name = _shared(base.name, down.name, up.name)
    passed = _passed(victim, model_trace, victim.model.get_submodule(name))
    if passed is None or not torch.equal(passed[0], base.received) or passed[1].shape != base.returned.shape:
        return None
    extra, branch = (passed[1] - base.returned).double(), up.returned.double()
    scale = float((extra * branch).sum() / branch.square().sum()) if bool((branch != 0).any()) else 1.0
    if float((extra - scale * branch).abs().max()) > _AGREES * float(passed[1].abs().max()):
        return None
    positions = down.received[..., 0].numel() // len(down.received)
    return LowRankBranch(name=name, base=base.name, down=down.name, up=up.name, scale=scale, positions=positions)


def _shared(*names: str) -> str:
    """The longest name of a module that all are in."""
    parts = [name.split(".") for name in names]
    count = 0
    while all(len(part) > count + 1 for part in parts) and len({part[count] for part in parts}) == 1:
        count += 1
    return ".".join(parts[0][:count])


def _passed(victim: Victim, model_trace: Trace, module: nn.Module) -> tuple[Tensor, Tensor] | None:
    """What a module is given, alone, and what it returns; None where it runs more than once or takes more."""
    seen: list[tuple[tuple[Any, ...], Any]] = []
    handle = module.register_forward_hook(_keeper(seen))
    try:
        with torch.no_grad(), sample_noise(generator=torch.Generator(model_trace.probe.device).manual_seed(0)):
            victim.model(model_trace.probe.clone())
    finally:
        handle.remove()
    if len(seen) != 1 or len(seen[0][0]) != 1 or not isinstance(seen[0][1], Tensor):
        return None
    return seen[0][0][0], seen[0][1]


def _keeper(seen: list[tuple[tuple[Any, ...], Any]]) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def keep(_: nn.Module, given: tuple[Any, ...], returned: Any) -> None:
        seen.append((given, returned))

    return keep
