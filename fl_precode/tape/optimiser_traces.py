"""Optimiser of an update, where nobody named it: Adam and its kind leave traces that SGD does not.

Adam (Kingma, Ba, ICLR 2015), AdamW, RMSprop and Adagrad divide each entry of a gradient by its own size. In one step
every entry that moves at all moves by the learning rate; in several it moves by their number times the learning rate at
most, and many entries come near that, in every layer. An entry that SGD moves moves by its gradient: within a layer
those are spread at least as widely as normal numbers (they are products of what entered and what was returned), and
between layers their sizes differ. The trace is therefore that entries at least half as large as the largest of all are
many more than among as many normal numbers, and that the layers' largest entries agree.

Updates by signs alone (signSGD, one bit for each entry) look as one step of Adam does, and are not told from it. After
dozens of steps on changing batches entries go back and forth, and the trace fades.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor

_FEWEST_ENTRIES = 256
_FEWEST_OF_A_MATRIX = 64
"""Entries that moved below which nothing is said: of a few numbers many are near the largest by chance."""

_FEWEST_OF_A_LAYER = 8
"""Entries of one tensor that show whether all of them have one size."""

_MANY = 3.0
"""How many times as many entries are large as of normal numbers. Real layers under SGD have less than 1; 1,000 numbers
spread evenly up to their largest, as a few steps of Adam leave them, have 5, and more numbers more."""

_AGREE = 2.5
"""Largest ratio of the layers' largest entries."""

_EQUAL = 0.2
"""Share by which entries of one step may differ from their median."""

_NEARLY_ALL = 0.8

_REACH = 10.5
"""Multiples of the learning rate that an entry may move in a step: RMSprop's first is 10, for its smoothing of .99."""

_ONE_LEVEL = 0.01
"""Share by which numbers may differ that were rounded to one level and went through the arithmetic of weights."""


@dataclass(frozen=True, kw_only=True)
class OptimiserTrace:
    """What the sizes of an update's entries say about the optimiser.

    Attributes:
        optimiser: ``adam`` for Adam and its kind, signs included; None when nothing speaks for it, as after SGD.
        learning_rate: Estimate; None without an optimiser, and where the number of steps is not known.
        evidence: One sentence.
    """

    optimiser: Literal["adam"] | None
    learning_rate: float | None
    evidence: str


def optimiser_trace(
    update: Mapping[str, Tensor], *, steps: int | None, learning_rate: float | None
) -> OptimiserTrace | None:
    """Look for the traces of Adam in an update.

    Args:
        update: Weights sent back minus weights received, by parameter name.
        steps: Local steps that were announced; None when not known.
        learning_rate: That was announced; None when not known.

    Returns:
        What was found; None for an update of which nothing can be said: too few entries moved, or it has less than two
        matrices whose entries differ in size.

    >>> generator = torch.Generator().manual_seed(0)
    >>> signs = {name: torch.randn(20, 30, generator=generator).sign() for name in ("first.weight", "second.weight")}
    >>> found = optimiser_trace({n: -0.001 * v for n, v in signs.items()}, steps=1, learning_rate=None)
    >>> found.optimiser, round(found.learning_rate, 6)
    ('adam', 0.001)
    """
    sizes = {name: _moved(value) for name, value in update.items()}
    matrices = [sizes[name] for name, value in update.items() if value.dim() >= 2]
    matrices = [one for one in matrices if len(one) >= _FEWEST_OF_A_MATRIX]
    every = torch.cat(list(sizes.values())) if sizes else torch.zeros(0)
    layers = [one for one in sizes.values() if len(one) >= _FEWEST_OF_A_LAYER]
    if not matrices or len(layers) < 2 or len(every) < _FEWEST_ENTRIES:
        return None
    if _rounded_by_layer(layers):
        return OptimiserTrace(
            optimiser=None,
            learning_rate=None,
            evidence="the entries of each layer have one size of their own: they were rounded or scaled layer by layer",
        )
    middle = float(every.median())
    equal = _share(every, middle * (1 - _EQUAL), middle * (1 + _EQUAL))
    compared = matrices if len(matrices) > 1 else layers  # a head alone has one matrix, and its bias
    if equal >= _NEARLY_ALL and _ratio([float(one.median()) for one in compared]) <= 1 + _EQUAL:
        return _of_one_size(equal, middle, steps, learning_rate)
    if len(matrices) < 2:
        return None
    return _of_many_sizes(every, matrices, steps, learning_rate)


def _moved(value: Tensor) -> Tensor:
    """Sizes of the entries that moved, flat; finite ones only."""
    flat = value.detach().abs().flatten().double().cpu()
    return flat[(flat > 0) & flat.isfinite()]


def _share(values: Tensor, low: float, high: float) -> float:
    return float(((values >= low) & (values <= high)).double().mean())


def _ratio(values: Sequence[float]) -> float:
    return max(values) / min(values)


def _rounded_by_layer(layers: Sequence[Tensor]) -> bool:
    """Whether each layer has one size and the layers differ: values rounded to -s, 0 and s with a scale s of each."""
    middles = [float(one.median()) for one in layers]
    alone = [
        _share(one, middle * (1 - _ONE_LEVEL), middle * (1 + _ONE_LEVEL))
        for one, middle in zip(layers, middles, strict=True)
    ]
    return min(alone) > 1 - _ONE_LEVEL and _ratio(middles) > 1 + 2 * _ONE_LEVEL


def _of_one_size(equal: float, size: float, steps: int | None, announced: float | None) -> OptimiserTrace:
    rate = size if steps in (None, 1) else size / steps
    told = "" if announced is None else f", announced {announced:.3g}"
    return OptimiserTrace(
        optimiser="adam",
        learning_rate=rate,
        evidence=f"{equal:.0%} of the entries that moved moved by the same amount in all layers, {size:.3g}{told}: one "
        "step of Adam (or of its kind), or signs alone; entries of SGD differ",
    )


def _of_many_sizes(
    every: Tensor, matrices: Sequence[Tensor], steps: int | None, announced: float | None
) -> OptimiserTrace:
    largest = float(every.max())
    large = _share(every, largest / 2, largest)
    expected = _large_of_normal(len(every))
    agreement = _ratio([float(one.max()) for one in matrices])
    found = f"{large:.1%} of the entries are at least half as large as the largest ({expected:.1%} of normal numbers)"
    layers = f"the layers' largest differ by a factor of {agreement:.1f}"
    too_far = steps is not None and announced is not None and largest > _REACH * steps * announced
    if large < _MANY * expected or agreement > _AGREE or too_far:
        return OptimiserTrace(optimiser=None, learning_rate=None, evidence=f"{found}, and {layers}: no trace of Adam")
    return OptimiserTrace(
        optimiser="adam",
        learning_rate=None if steps is None else largest / steps,
        evidence=f"{found}, and {layers}: steps of Adam or of its kind, which go equally far in every layer",
    )


def _large_of_normal(count: int) -> float:
    """Share of the sizes of ``count`` normal numbers that are at least half of the largest, for the median largest."""
    normal = NormalDist()
    largest = normal.inv_cdf(1 - (1 - 0.5 ** (1 / count)) / 2)
    return 2 * (1 - normal.cdf(largest / 2))
