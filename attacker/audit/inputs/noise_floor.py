"""Distance at which announced noise keeps the true images from their update: the end of every search."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from fl_precode.defences.dp_sgd import DpSgd
from fl_precode.defences.flower_dp import LocalDp
from fl_precode.defences.on_gradients import Clip, GaussianNoise, LaplaceNoise
from fl_precode.defences.registry import defence_parts, gradient_defence
from fl_precode.observation import Observation

_WHOLE_GRADIENT = frozenset({"none", "noise", "laplace", "dp", "dropout", "clip", "local-dp"})
"""Defences beside which noise is on every number, and attacks match all of them as they were sent."""


def noise_floors(observations: Sequence[Observation]) -> dict[str, float]:
    """Expected distance of the true images' gradient to their update, by name of the distance; the median of updates.

    Of locally trained weights not by "l2" and "l1", because attacks match them on a scale of their own, and of what was
    clipped first by "cosine" alone. Empty where no noise was announced, where other defences change which numbers are
    sent or matched, and where the noise of a sum of steps would have to be guessed.

    Args:
        observations: The updates, with what was announced.
    """
    each = [floors for observation in observations if (floors := _floors(observation))]
    names = set.intersection(*(set(floors) for floors in each)) if each else set()
    return {name: statistics.median(floors[name] for floors in each) for name in sorted(names)}


def _floors(observation: Observation) -> Mapping[str, float]:
    defence = observation.protocol.defence
    if defence in (None, "unknown", "none") or {part.name for part in defence_parts(defence)} - _WHOLE_GRADIENT:
        return {}
    try:
        chain = gradient_defence(defence)
    except ValueError:  # announced, and not one that exists
        return {}
    # What is clipped behind its noise has less of it, by a factor that nobody knows.
    *before, last = chain.parts if chain is not None else (None,)
    level = _level(last, observation)
    square = sum(float(value.double().square().sum()) for value in observation.update.values())
    if level is None or square == 0 or not all(isinstance(part, Clip) for part in before):
        return {}
    std, size = level
    numbers = sum(value.numel() for value in observation.update.values())
    noise = numbers * std**2
    floors = {"cosine": 1 - math.sqrt(max(0.0, 1 - noise / square))}
    if before or isinstance(last, DpSgd | LocalDp):
        return floors  # the true images' gradient is not as large as what was sent
    sizes = sum(float(value.double().abs().sum()) for value in observation.update.values())
    floors |= {"l2-relative": noise / square, "l1-relative": numbers * size / sizes}
    return floors | ({"l2": noise, "l1": numbers * size} if observation.kind == "gradient" else {})


def _level(part: object, observation: Observation) -> tuple[float, float] | None:
    """Standard deviation and mean size of the noise that a part adds to each number sent; None where not known."""
    if isinstance(part, LaplaceNoise):
        return part.std, part.std / math.sqrt(2)
    std = None
    if isinstance(part, GaussianNoise | LocalDp):
        std = part.std
    elif isinstance(part, DpSgd) and observation.kind == "gradient" and observation.batch_size:
        std = part.noise_multiplier * part.max_norm / observation.batch_size
    return (std, std * math.sqrt(2 / math.pi)) if std else None
