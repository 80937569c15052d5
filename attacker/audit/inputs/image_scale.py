"""Scale of the clients' images, where it was not announced: estimated from reconstructions.

Clients normalise their images by a mean and a deviation that a server never sees. Attacks find what enters the model,
in its own scale; to show and score it as a picture, mean and deviation must be known. The truth never takes part here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from torch import Tensor

from attacker.attacks.base import Outcome, Reconstruction
from fl_precode.assumption import Assumption
from fl_precode.models.input_spec import InputSpec

_Numbers = tuple[float, ...]

_USUAL: Sequence[tuple[str, _Numbers, _Numbers]] = (
    ("images in [0, 1]", (0.0,), (1.0,)),
    ("mean and deviation 0.5, that is values in [-1, 1]", (0.5,), (0.5,)),
    ("the statistics of MNIST", (0.1307,), (0.3081,)),
    ("the statistics of CIFAR-10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    ("the statistics of ImageNet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ("images in [0, 255]", (0.0,), (1 / 255,)),
)
"""What apps usually normalise by; one number is for every channel, and MNIST's for images of one channel only."""

_MNIST = "the statistics of MNIST"
_REPLAYED_BELOW = 1e-3
"""Matching loss of a formula's image above which the formula did not hold."""

_MISFIT = 0.5
"""What lies outside of a scale, in squares of the tolerance, above which that scale is ruled out."""


class Trust(IntEnum):
    """How far the values of a reconstruction can be trusted."""

    NONE = 0
    CONVERGED = 1
    EXACT = 2


_TOLERANCE = {Trust.NONE: 0.3, Trust.CONVERGED: 0.1, Trust.EXACT: 0.01}
"""Error of a value, as a share of the width of the scale."""

_MOST = {Trust.NONE: 3.0, Trust.CONVERGED: 3.0, Trust.EXACT: 1e6}
"""The most that one value counts: in a batch a search may match well and still have some pixels far off."""


@dataclass(frozen=True, kw_only=True)
class ImageScale:
    """The scale by which reconstructions are shown and scored.

    Attributes:
        inputs: The input domain with the mean and the deviation that are known or taken.
        assumption: What was guessed; None where the scale is known.
    """

    inputs: InputSpec
    assumption: Assumption | None = None


def estimate_scale(inputs: InputSpec, reconstructions: Iterable[Reconstruction]) -> ImageScale:
    """The scale of the images, from the values that attacks reconstructed.

    Of the usual scales it is the narrowest that holds the values of the reconstructions that are trusted most, within
    their error: the width counts by its logarithm, what lies outside by its square. Where none holds them, the scale
    is the range of the values itself.

    Args:
        inputs: Input domain; returned as it is where its scale is known.
        reconstructions: All reconstructions of images of this domain, in the model's scale.

    >>> plain = InputSpec(channels=1, height=1, width=2, classes=2, mean=(0,), std=(1,), scale_known=False)
    >>> one = Reconstruction(inputs=torch.tensor([[[[-1.0, 0.9]]]]), labels=None, outcome=Outcome.CONVERGED)
    >>> estimate_scale(plain, [one]).inputs.mean
    (0.5,)
    """
    if inputs.scale_known:
        return ImageScale(inputs=inputs)
    trust, images = _most_trusted(reconstructions)
    if images is None:
        return ImageScale(inputs=inputs, assumption=_unknown(inputs, "no attack reconstructed an image"))
    name, scaled = _narrowest(inputs, images, trust)
    if trust is Trust.NONE:
        why = f"no attack came near enough; pictures are shown as if it were {name}, which fits the best of them"
        return ImageScale(inputs=scaled, assumption=_unknown(scaled, why))
    return ImageScale(inputs=scaled, assumption=_guessed(name, scaled, images))


def usual_scales(inputs: InputSpec) -> list[InputSpec]:
    """The input domain on each of the scales that apps usually have."""
    return [
        replace(
            inputs,
            mean=mean * (inputs.channels // len(mean)),
            std=std * (inputs.channels // len(std)),
            scale_known=True,
        )
        for _, mean, std in _USUAL
        if len(mean) in (1, inputs.channels)
    ]


def _most_trusted(reconstructions: Iterable[Reconstruction]) -> tuple[Trust, Tensor | None]:
    """Images (n, channels, height, width) of the highest trust that there is; of those without, the best ones."""
    usable = [
        (reconstruction, images)
        for reconstruction in reconstructions
        if (images := _finite(reconstruction)) is not None
    ]
    if not usable:
        return Trust.NONE, None
    trust = max(_trust(reconstruction) for reconstruction, _ in usable)
    chosen = [(reconstruction, images) for reconstruction, images in usable if _trust(reconstruction) is trust]
    if trust is Trust.NONE:
        least = min(_left(reconstruction) for reconstruction, _ in chosen)
        chosen = [(reconstruction, images) for reconstruction, images in chosen if _left(reconstruction) <= least]
    return trust, torch.cat([images for _, images in chosen])


def _finite(reconstruction: Reconstruction) -> Tensor | None:
    if reconstruction.inputs is None or reconstruction.outcome in (Outcome.FAILED, Outcome.NOT_APPLICABLE):
        return None
    images = reconstruction.inputs.detach().cpu().double()
    images = images[torch.isfinite(images).flatten(1).all(dim=1)]
    return images if len(images) else None


def _trust(reconstruction: Reconstruction) -> Trust:
    if reconstruction.outcome is not Outcome.CONVERGED:
        return Trust.NONE
    # A formula holds or does not; what it gives behind a bottleneck cannot be replayed.
    formula = reconstruction.iterations == 0 and (
        reconstruction.matching_loss is None or reconstruction.matching_loss < _REPLAYED_BELOW
    )
    return Trust.EXACT if formula else Trust.CONVERGED


def _left(reconstruction: Reconstruction) -> float:
    """Share of the starting distance that is left; 1 where it was not measured."""
    if reconstruction.matching_loss is None or not reconstruction.starting_loss:
        return 1.0
    return reconstruction.matching_loss / reconstruction.starting_loss


def _narrowest(inputs: InputSpec, images: Tensor, trust: Trust) -> tuple[str, InputSpec]:
    best: tuple[float, str, InputSpec] | None = None
    for name, mean, std in _USUAL:
        if len(mean) not in (1, inputs.channels) or (name == _MNIST and inputs.channels != 1):
            continue
        scaled = _with(inputs, mean, std)
        outside, width = _outside(scaled, images)
        squares = (outside / (_TOLERANCE[trust] * width)).square() / 2
        misfit = float(squares.clamp_max(_MOST[trust]).mean())
        cost = float(width.log().mean()) + misfit
        if misfit <= _MISFIT and (best is None or cost < best[0]):
            best = cost, name, scaled
    if best is not None:
        return best[1:]
    low, high = _range(images, trust)
    if not high > low:
        return "images in [0, 1]", inputs
    return f"values in [{low:.3g}, {high:.3g}]", _with(inputs, (-low / (high - low),), (1 / (high - low),))


def _with(inputs: InputSpec, mean: _Numbers, std: _Numbers) -> InputSpec:
    repeat = inputs.channels // len(mean)
    return replace(inputs, mean=mean * repeat, std=std * repeat)


def _outside(scaled: InputSpec, images: Tensor) -> tuple[Tensor, Tensor]:
    """How far each value is outside of the box, and the width of the box, (channels, 1, 1)."""
    low = scaled.normalise(torch.zeros((), dtype=images.dtype))
    high = scaled.normalise(torch.ones((), dtype=images.dtype))
    return (low - images).clamp_min(0) + (images - high).clamp_min(0), high - low


def _range(images: Tensor, trust: Trust) -> tuple[float, float]:
    """Ends of the values; without those that an error may have pushed out."""
    values = images.flatten().sort().values
    cut = 0 if trust is Trust.EXACT else math.ceil(len(values) / 200)
    return float(values[cut]), float(values[-1 - cut])


def _guessed(name: str, scaled: InputSpec, images: Tensor) -> Assumption:
    return Assumption(
        code="scale-guessed",
        sentence=f"The clients' images are normalised by {name}: it is the narrowest usual scale that holds the "
        f"reconstructed values, {float(images.min()):.3g} to {float(images.max()):.3g}. Pictures and scores use it.",
        doubt="Pictures that are too pale, too dark or of wrong colours: then the clients normalise by other numbers.",
        line=_line(scaled),
    )


def _unknown(scaled: InputSpec, why: str) -> Assumption:
    return Assumption(
        code="scale-unknown",
        sentence=f"How the clients normalise their images is not known, and cannot be seen: {why}.",
        doubt="The mean and the deviation in the clients' code.",
        line=_line(scaled),
    )


def _line(scaled: InputSpec) -> str:
    mean, std = ([round(value, 4) for value in values] for values in (scaled.mean, scaled.std))
    return f"mean = {json.dumps(mean)}\nstd = {json.dumps(std)}"
