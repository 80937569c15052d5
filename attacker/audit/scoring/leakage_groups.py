"""Leakage of single images put together: by node, by class, and beside the errors that attacks reached."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from scipy.stats import norm, spearmanr

from attacker.audit.record.schema import ImageResult, InfluenceGroup
from fl_precode.observation import Observation

LEAST_FOR_CORRELATION: Final = 5
"""Images below which nothing is said about predicted and measured errors."""


@dataclass(frozen=True, kw_only=True)
class Leak:
    """What was found for one image.

    Attributes:
        seen: Its update.
        place: In the batch.
        label: Class.
        rank: Numbers of the image that the gradient determines.
        unit_rmse: Error of pixels for noise of deviation 1 on the gradient (E-I2F).
        influence: Error that the defence's own change of the gradient leads to (I2F); None where there is no change.
    """

    seen: Observation
    place: int
    label: int
    rank: int
    unit_rmse: float
    influence: float | None


def groups(leaks: Sequence[Leak], class_names: Sequence[str]) -> list[InfluenceGroup]:
    """I2F by node, then by class, in the order of the images and of the classes.

    Args:
        leaks: Leaks of images.
        class_names: For people; a class without a name is a number.
    """
    by_node: dict[str, list[float]] = {}
    by_class: dict[int, list[float]] = {}
    for leak in leaks:
        if leak.influence is not None:
            by_node.setdefault(leak.seen.node, []).append(leak.influence)
            by_class.setdefault(leak.label, []).append(leak.influence)
    nodes = [_group("node", name, values) for name, values in by_node.items()]
    names = dict(enumerate(class_names))
    return [*nodes, *(_group("class", names.get(label, str(label)), by_class[label]) for label in sorted(by_class))]


def _group(kind: str, name: str, values: Sequence[float]) -> InfluenceGroup:
    return InfluenceGroup.model_validate(
        {"group": kind, "name": name, "images": len(values), "mean": statistics.fmean(values), "largest": max(values)}
    )


def correlation(leaks: Sequence[Leak], rows: Sequence[ImageResult]) -> tuple[float, tuple[float, float]] | None:
    """Spearman's coefficient of I2F and the smallest measured RMSE, with its 95 % interval; None with too few images.

    Args:
        leaks: Leaks of images.
        rows: Results of all attacks on them.
    """
    errors: dict[tuple[int, str, int], float] = {}
    for row in rows:
        if row.mse is not None:
            place = (row.round, row.node, row.image)
            errors[place] = min(math.sqrt(row.mse), errors.get(place, math.inf))
    places = [(leak.influence, (leak.seen.round, leak.seen.node, leak.place)) for leak in leaks]
    pairs = [(value, errors[place]) for value, place in places if value is not None and place in errors]
    if len(pairs) < LEAST_FOR_CORRELATION:
        return None
    first, second = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
    if not bool((first != first[0]).any()) or not bool((second != second[0]).any()):
        return None
    value = float(spearmanr(first.numpy(), second.numpy()).statistic)
    return value, spearman_interval(value, len(pairs))


def spearman_interval(value: float, images: int) -> tuple[float, float]:
    """95 % interval of Spearman's coefficient: Fisher's, with the variance of Bonett, Wright (Psychometrika 2000).

    >>> low, high = spearman_interval(0.6, 30)
    >>> round(low, 3), round(high, 3)
    (0.276, 0.802)
    """
    if abs(value) >= 1:
        return (-1.0 if value < 0 else 1.0,) * 2
    width = norm.ppf(0.975) * math.sqrt((1 + value**2 / 2) / (images - 3))
    centre = math.atanh(value)
    return float(math.tanh(centre - width)), float(math.tanh(centre + width))
