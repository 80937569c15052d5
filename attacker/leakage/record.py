"""Result of a leakage analysis as plain data: for JSON, for pages and for other records."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class LayerRank:
    """Equations that a gradient gives for the input of one layer.

    Attributes:
        name: Name of the layer.
        kind: ``Conv2d`` or ``Linear``.
        unknowns: Numbers that enter it.
        weight_rows: Equations from its weights, one for each output.
        gradient_rows: Equations from the gradient of its weights, one for each weight.
        dependent_rows: Equations that follow from others whatever the numbers are: outputs² in most.
        untouched: Input numbers that no window touches.
        predicted: The most that the rank can be, by counting.
        rank: Rank of the equations at this image, or None where they were too many.
        gap: The smallest eigenvalue that counts and the largest that does not, as shares of the largest; None likewise.
    """

    name: str
    kind: str
    unknowns: int
    weight_rows: int
    gradient_rows: int
    dependent_rows: int
    untouched: int
    predicted: int
    rank: int | None
    gap: tuple[float, float | None] | None

    @property
    def missing(self) -> int:
        """Unknowns that the layer's own equations leave open; by counting where no rank was computed."""
        return self.unknowns - (self.predicted if self.rank is None else self.rank)


@dataclass(frozen=True, kw_only=True)
class ImageLeak:
    """Leakage of one image by its released gradient.

    Attributes:
        index: Index of the image in what was analysed.
        label: Class.
        gradient_norm: Euclidean norm of the gradient.
        unknowns: Pixels times channels.
        exact: Whether all eigenvalues of JJ^T were computed; if not, ``rank`` and ``smallest`` are None and
            ``unit_rmse`` is a bound from below, and may be over ten times too small (`glance`).
        rank: Rank of J, how many of the unknowns the gradient determines.
        largest: Eigenvalue of JJ^T.
        smallest: Eigenvalue of JJ^T that counts.
        unit_rmse: Root mean squared error of pixels for independent noise of standard deviation 1 on the gradient
            (E-I2F): multiply by the noise's.
        influence: RMSE that the defence's own change of the gradient leads to (I2F), or None without one.
        lower_bound: ``I_lb`` of the same change, as RMSE; loose, for comparison only.
        reason: Why nothing could be said, or None.
    """

    index: int
    label: int
    gradient_norm: float
    unknowns: int
    exact: bool = True
    rank: int | None = None
    largest: float | None = None
    smallest: float | None = None
    unit_rmse: float | None = None
    influence: float | None = None
    lower_bound: float | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class NoiseRanks:
    """Part of one image that a variational bottleneck leaves determined.

    Attributes:
        unknowns: Pixels times channels.
        noise: Numbers that the bottlenecks draw.
        known: Rank of J if the attacker knew the noise.
        fitted: Rank that remains when the noise has to be fitted along with the image, from the same gradient.
        before: Rank of J by the layers in front of the noise and the encoder alone, if the attacker knew the noise.
        known_rmse: Unit RMSE (see `ImageLeak`) if the attacker knew the noise.
        fitted_rmse: Unit RMSE when it has to be fitted.
        sampling: I2F, as RMSE, for an attacker who ignores the noise and replays with zeros.
    """

    unknowns: int
    noise: int
    known: int
    fitted: int
    before: int
    known_rmse: float
    fitted_rmse: float
    sampling: float


@dataclass(frozen=True, kw_only=True)
class PositionRank:
    """Whether the gradient of a position embedding determines all patches of one image (`patch-embedding`).

    Attributes:
        positions: Name of the position embedding.
        layer: Name of the layer that sees patches.
        patches: Patches of an image.
        width: Numbers of a token, the largest number of patches that are determined.
        rank: Rank of the gradients at the patches, at this image: how many patches the linear system determines.
    """

    positions: str
    layer: str
    patches: int
    width: int
    rank: int

    @property
    def exact(self) -> bool:
        """Whether one image is exactly determined."""
        return self.rank == self.patches


@dataclass(frozen=True, kw_only=True)
class SpanRank:
    """Number of images that two stacked layers separate (`activation-span`).

    Attributes:
        first: Name of the layer whose inputs are found.
        second: Name of the layer behind the activation.
        activation: Its name.
        tokens: Whether the layers see the tokens of a transformer's block; else images themselves.
        each: Vectors of one image: its tokens, or itself.
        most: Vectors that have directions of their own at most, by the layers' widths.
        rank: Directions of the first layer's gradient, at this image; fewer than `each` where vectors are alike.
    """

    first: str
    second: str
    activation: str
    tokens: bool
    each: int
    most: int
    rank: int

    @property
    def images(self) -> int:
        """Images of a batch that are exactly determined together, at most."""
        return self.most // self.each


@dataclass(frozen=True, kw_only=True)
class Leakage:
    """An analysis of one model.

    Attributes:
        model: Spec of the model.
        defence: Spec of the defence, ``none`` without one.
        weights: Where the weights come from, for people.
        images_from: Where the images come from, for people.
        shape: (channels, height, width).
        parameters: Numbers in the gradient.
        std: Noise for which errors are stated.
        layers: In order of execution, for the first image.
        solubility: c(M) of Chen, Campbell over the layers; unsound, for comparison.
        images: One for each.
        eigenvalues: Shares of the largest, for the first image, thinned out, the largest first; empty unless exact.
        lost: (height, width) rows of the first image, mean over channels of the share of each pixel that the gradient
            does not determine; empty unless exact.
        noise: Ranks with and without the bottlenecks' noise, or None without bottlenecks or unless exact.
        seconds: Processor time of the analysis.
        positions: Patches that the gradient of positions determines, for the first image; None where there are none.
        spans: Pairs of layers that take batches apart, for the first image.
    """

    model: str
    defence: str
    weights: str
    images_from: str
    shape: tuple[int, int, int]
    parameters: int
    std: float
    layers: tuple[LayerRank, ...]
    solubility: float
    images: tuple[ImageLeak, ...]
    eigenvalues: tuple[float, ...] = ()
    lost: tuple[tuple[float, ...], ...] = ()
    noise: NoiseRanks | None = None
    seconds: float = 0.0
    positions: PositionRank | None = None
    spans: tuple[SpanRank, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with what follows from the fields: ``missing``, ``exact``, ``images``."""
        plain = asdict(self)
        for layer, layer_rank in zip(plain["layers"], self.layers, strict=True):
            layer["missing"] = layer_rank.missing
        if self.positions is not None:
            plain["positions"]["exact"] = self.positions.exact
        for span, span_rank in zip(plain["spans"], self.spans, strict=True):
            span["images"] = span_rank.images
        return plain

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Self:
        """The analysis that `as_dict` wrote, also after a passage through JSON; of older versions, too."""
        later = {"positions": None, "spans": ()}
        values = {field.name: {**later, **plain}[field.name] for field in fields(cls)}
        layers = [_own(LayerRank, layer) for layer in values["layers"]]
        return cls(
            **{
                **values,
                "shape": tuple(values["shape"]),
                "layers": tuple(
                    LayerRank(**{**layer, "gap": layer["gap"] and tuple(layer["gap"])}) for layer in layers
                ),
                "images": tuple(ImageLeak(**image) for image in values["images"]),
                "eigenvalues": tuple(values["eigenvalues"]),
                "lost": tuple(map(tuple, values["lost"])),
                "noise": values["noise"] and NoiseRanks(**values["noise"]),
                "positions": values["positions"] and PositionRank(**_own(PositionRank, values["positions"])),
                "spans": tuple(SpanRank(**_own(SpanRank, span)) for span in values["spans"]),
            }
        )


def _own(kind: type[LayerRank] | type[PositionRank] | type[SpanRank], plain: dict[str, Any]) -> dict[str, Any]:
    """Fields of plain data alone, without what follows from them."""
    return {field.name: plain[field.name] for field in fields(kind)}


def outliers(images: tuple[ImageLeak, ...], *, times: float = 3.0) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Indices of images that are far more, and far less, at risk than most.

    By the logarithm of the unit RMSE: further from the median than ``times`` its spread (median deviation, as that of a
    normal distribution), and at least a factor of two.

    Args:
        images: Those without a finite, positive unit RMSE do not count.
        times: Spreads.

    Returns:
        Most at risk (small errors), the worst first; least at risk, the safest first.
    """
    logs = {leak.index: math.log(leak.unit_rmse) for leak in images if leak.unit_rmse and math.isfinite(leak.unit_rmse)}
    if len(logs) < 3:
        return (), ()
    middle = _median(list(logs.values()))
    spread = 1.4826 * _median([abs(value - middle) for value in logs.values()])
    limit = max(times * spread, math.log(2))
    ordered = sorted(logs, key=lambda index: logs[index])
    most = [index for index in ordered if logs[index] < middle - limit]
    least = [index for index in reversed(ordered) if logs[index] > middle + limit]
    return tuple(most), tuple(least)


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
