"""How far announced noise keeps the true images from their update: a search that stands there has done all it can."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from fl_precode.defences import defence_parts, gradient_defence
from fl_precode.observation import Observation
from fl_precode.perturb import Clip, GaussianNoise, LaplaceNoise
from fl_precode.private_sgd import DpSgd

_WHOLE_GRADIENT = frozenset({"none", "noise", "laplace", "dp", "dropout", "clip"})
"""Defences beside which noise is on every number, and attacks match all of them as they were sent."""


def noise_floors(observations: Sequence[Observation]) -> dict[str, float]:
    """Expected distance of the true images' gradient to their update, by name of the distance; the median of updates.

    Of each update that is a gradient by "cosine", "l2" and "l1"; of locally trained weights, and of what was clipped
    first, by "cosine" alone, because attacks match them on a scale of their own. Empty where no noise was announced,
    where other defences change which numbers are sent or matched, and where the noise of a sum of steps would have to
    be guessed.

    Args:
        observations: The updates, with what was announced.

    Raises:
        ValueError: If an announced defence does not exist.
    """
    each = [floors for one in observations if (floors := _floors(one))]
    names = set.intersection(*(set(floors) for floors in each)) if each else set()
    return {name: statistics.median(floors[name] for floors in each) for name in sorted(names)}


def _floors(observation: Observation) -> Mapping[str, float]:
    defence = observation.protocol.defence
    if defence in (None, "unknown", "none") or {part.name for part in defence_parts(defence)} - _WHOLE_GRADIENT:
        return {}
    chain = gradient_defence(defence)
    parts = () if chain is None else chain.parts
    clips = [place for place, part in enumerate(parts) if isinstance(part, Clip)]
    levels = [_level(part, observation) for part in parts if not isinstance(part, Clip)]
    known = [level for level in levels if level is not None]
    numbers = sum(value.numel() for value in observation.update.values())
    square = sum(float(value.double().square().sum()) for value in observation.update.values())
    # What is clipped behind its noise has less of it, by a factor that nobody knows.
    clipped_behind = clips != list(range(len(clips)))
    if not known or len(known) < len(levels) or clipped_behind or square == 0:
        return {}
    noise = numbers * sum(std**2 for std, _ in known)
    found = {"cosine": 1 - math.sqrt(max(0.0, 1 - noise / square))}
    if observation.kind == "gradient" and not clips and not any(isinstance(part, DpSgd) for part in parts):
        found["l2"] = noise
        if len(known) == 1:  # the mean size of a sum of two kinds has no short formula
            found["l1"] = numbers * known[0][1]
    return found


def _level(part: object, observation: Observation) -> tuple[float, float] | None:
    """Standard deviation and mean size of the noise that a part adds to each number sent; None where not known."""
    if isinstance(part, LaplaceNoise):
        return part.std, part.std / math.sqrt(2)
    std = None
    if isinstance(part, GaussianNoise):
        std = part.std
    elif isinstance(part, DpSgd) and observation.kind == "gradient" and observation.batch_size:
        std = part.noise_multiplier * part.max_norm / observation.batch_size
    return (std, std * math.sqrt(2 / math.pi)) if std else None
