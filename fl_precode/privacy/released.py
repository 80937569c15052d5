"""Which mechanism of differential privacy a defence is: whom it protects, and how well its noise covers them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from fl_precode.defences.dp_sgd import DpSgd
from fl_precode.defences.on_gradients import Clip, GaussianNoise, GradientDefence, Prune
from fl_precode.defences.registry import defence_parts, gradient_defence
from fl_precode.spec import Spec

DELTA: Final = 1e-5
"""Of the epsilons that are stated where nobody named another."""

Unit = Literal["image", "client"]


@dataclass(frozen=True, kw_only=True)
class Released:
    """A Gaussian mechanism: what is released once is bounded, and Gaussian noise covers it.

    Attributes:
        unit: What is in or out: one image, where each image's gradient is clipped; or all of a client's images, where
            its update is clipped.
        mu: Largest norm of what the unit adds, over the deviation of the noise.
        clip: That norm, before any averaging.
        per_step: Whether each local step is a release; otherwise each round is one.
        claimed: Epsilon that the defence's own settings announce for one release; None where they announce none.
        delta: Of the epsilons that are stated.
        buffers: Whether running statistics are bounded and covered too.
    """

    unit: Unit
    mu: float
    clip: float
    per_step: bool = False
    claimed: float | None = None
    delta: float = DELTA
    buffers: bool = False


def released_by(defence: str) -> Released | None:
    """The mechanism that a defence spec is; None for a defence that bounds nothing, or covers it with no noise.

    What follows the noise changes nothing that the mechanism promises. Nothing but pruning may stand between clip and
    noise, because only that is known not to enlarge the update.

    >>> released_by("dp:max_norm=2,noise_multiplier=0.5").mu, released_by("clip:max_norm=1+noise:std=0.1").unit
    (2.0, 'client')
    >>> released_by("noise:std=0.1") is None and released_by("clip:max_norm=1") is None
    True
    """
    try:
        specs = defence_parts(defence)
        announced = next((one for one in specs if one.name == "local-dp"), None)
        if announced is not None:
            return _local_dp(announced)
        chain = gradient_defence(defence)
    except ValueError:  # announced, and not one that exists
        return None
    bound: float | None = None
    for part in chain.parts if chain is not None else ():
        if isinstance(part, DpSgd):
            return _dp_sgd(part)
        if isinstance(part, GaussianNoise):
            return None if bound is None else Released(unit="client", mu=bound / part.std, clip=bound)
        bound = _bound(part, bound)
    return None


def _bound(part: GradientDefence, before: float | None) -> float | None:
    """Largest norm of an update behind a part of a defence; None where nothing bounds it."""
    if isinstance(part, Clip):
        return part.max_norm if before is None else min(before, part.max_norm)
    return before if isinstance(part, Prune) else None


def _dp_sgd(part: DpSgd) -> Released | None:
    if part.noise_multiplier == 0:
        return None
    return Released(unit="image", mu=1 / part.noise_multiplier, clip=part.max_norm, per_step=True)


def _local_dp(spec: Spec) -> Released | None:
    """Flower's LocalDpMod: its noise follows from a sensitivity that nothing ties to its clip."""
    given = {key: spec.number(key) for key in ("clip", "sensitivity", "epsilon", "delta")}
    clip, sensitivity, epsilon, delta = (given[key] for key in ("clip", "sensitivity", "epsilon", "delta"))
    if clip is None or epsilon is None or sensitivity is None:
        return None
    delta = DELTA if delta is None else delta
    if not (clip > 0 and sensitivity > 0 and 0 < epsilon < math.inf and 0 < delta < 1):
        return None
    std = sensitivity * math.sqrt(2 * math.log(1.25 / delta)) / epsilon
    return Released(unit="client", mu=clip / std, clip=clip, claimed=epsilon, delta=delta, buffers=True)
