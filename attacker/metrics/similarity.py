"""Similarity of images, success rates and matching: pure functions, one value for each image.

Images are (n, channels, height, width) on the [0, 1] scale, so denormalise first; values outside are clamped here.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest
from torch import Tensor

SSIM_WINDOW = 7
"""Side of the uniform SSIM window in pixels, scikit-image's default, which PRECODE used."""

_SSIM_CONSTANTS: Final = (0.01**2, 0.03**2)
"""Of luminance and of structure, squared, for a data range of 1 (Wang et al. 2004)."""

_VALUES_AT_ONCE: Final = 1 << 16
"""Values of images that SSIM is computed of at a time: half a MiB in float64, which stays in a processor's cache."""


def mse(images: Tensor, truth: Tensor) -> Tensor:
    """Mean squared error of each image, (n,), float64.

    Raises:
        ValueError: If the shapes differ, are not (n, channels, height, width), or a value is not finite.
    """
    images, truth = _prepare(images, truth)
    return (images - truth).square().mean(dim=(1, 2, 3))


def psnr(images: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB for a data range of 1, (n,), float64; infinite when identical.

    Raises:
        ValueError: As for `mse`.

    >>> psnr(torch.full((1, 1, 2, 2), 0.6), torch.full((1, 1, 2, 2), 0.5)).round(decimals=3)
    tensor([20.], dtype=torch.float64)
    """
    return -10 * torch.log10(mse(images, truth))


def ssim(images: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity of each image, (n,), float64, at most 1 (Wang et al. 2004).

    scikit-image's convention, which PRECODE used: uniform 7 x 7 window, sample covariance, mean over channels; data
    range 1. The Gaussian 11 x 11 convention gives other values.

    Raises:
        ValueError: As for `mse`, or if the images are smaller than the window.
    """
    images, truth = _prepare(images, truth)
    height, width = images.shape[-2:]
    if min(height, width) < SSIM_WINDOW:
        raise ValueError(
            f"expected images of at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels for the SSIM window, "
            f"got {height} x {width}; compare such small images by psnr"
        )
    at_once = max(1, _VALUES_AT_ONCE // images[0].numel()) if len(images) else 1
    similarities = torch.zeros(len(images), dtype=torch.float64)
    for start in range(0, len(images), at_once):
        chunk = slice(start, start + at_once)
        similarities[chunk] = _ssim(images[chunk].cpu(), truth[chunk].cpu())
    # Rounding leaves 1 + 1e-13 for equal images: more than a guess that is the image itself.
    return similarities.clamp(max=1.0)


def plain_ssim(truth: Tensor, levels: Tensor) -> Tensor:
    """SSIM of plain images, of one level everywhere, channel by channel: (n, channels, levels), float64.

    Args:
        truth: (n, channels, height, width) in [0, 1], of at least the window's size.
        levels: (n, channels, levels) in [0, 1], or what expands to it.
    """
    truth = truth.detach().double().clamp(0, 1)
    levels = levels.double().expand(*truth.shape[:2], levels.shape[-1])
    mean, pixels = _window_means(truth), SSIM_WINDOW**2
    spread = pixels / (pixels - 1) * (_window_means(truth * truth) - mean * mean)
    light, structure = _SSIM_CONSTANTS
    similarities = []
    for level in levels.unbind(dim=-1):
        plain = level[:, :, None, None]
        alike = (2 * plain * mean + light) * structure / ((plain * plain + mean * mean + light) * (spread + structure))
        similarities.append(alike.mean(dim=(2, 3)))
    return torch.stack(similarities, dim=-1)


def _ssim(images: Tensor, truth: Tensor) -> Tensor:
    """SSIM of each image, (n,), from means over all windows that lie inside; both are float64 in [0, 1]."""
    pixels = SSIM_WINDOW**2
    first, second = _window_means(images), _window_means(truth)
    unbiased = pixels / (pixels - 1)  # the covariance of a sample
    spread = unbiased * (_window_means(images * images) - first * first)
    other = unbiased * (_window_means(truth * truth) - second * second)
    shared = unbiased * (_window_means(images * truth) - first * second)
    light, structure = _SSIM_CONSTANTS
    above = (2 * first * second + light) * (2 * shared + structure)
    below = (first * first + second * second + light) * (spread + other + structure)
    return (above / below).mean(dim=(1, 2, 3))


def _window_means(values: Tensor) -> Tensor:
    """Mean of each window, by rows and then by columns."""
    return _sums(_sums(values, 3), 2) / SSIM_WINDOW**2


def _sums(values: Tensor, dim: int) -> Tensor:
    """Sums of seven neighbours along a dimension, from sums of two and of four of them."""
    pairs = _shifted(values, dim, 0, 1) + _shifted(values, dim, 1, 0)
    fours = _shifted(pairs, dim, 0, 2) + _shifted(pairs, dim, 2, 0)
    return _shifted(fours, dim, 0, 3) + _shifted(pairs, dim, 4, 1) + _shifted(values, dim, 6, 0)


def _shifted(values: Tensor, dim: int, start: int, less: int) -> Tensor:
    """Without the first ``start`` and the last ``less`` along a dimension."""
    return values.narrow(dim, start, values.shape[dim] - start - less)


def success_rate(ssim_values: Tensor, *, threshold: float) -> float:
    """Attack success rate: the share of images with SSIM >= ``threshold`` (PRECODE counts from 0.6 on).

    Raises:
        ValueError: If there is no image, or a value is NaN.

    >>> success_rate(torch.tensor([0.1, 0.6, 0.9, 0.2]), threshold=0.6)
    0.5
    """
    if ssim_values.dim() != 1 or ssim_values.numel() == 0 or bool(ssim_values.isnan().any()):
        raise ValueError(f"expected one SSIM value for each of 1 or more images, none NaN, got {ssim_values.tolist()}")
    return float((ssim_values >= threshold).double().mean())


def wilson_interval(successes: int, victims: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a success rate (Wilson 1927), low and high in [0, 1].

    Raises:
        ValueError: If there are no victims, more successes than victims, or the confidence is not in (0, 1).

    >>> low, high = wilson_interval(8, 10)
    >>> round(low, 4), round(high, 4)
    (0.4902, 0.9433)
    """
    if victims < 1 or not 0 <= successes <= victims:
        raise ValueError(f"expected 1 or more victims and at most as many successes, got {successes} of {victims}")
    if not 0 < confidence < 1:
        raise ValueError(f"expected a confidence between 0 and 1, such as 0.95, got {confidence}")
    interval = binomtest(successes, victims).proportion_ci(confidence_level=confidence, method="wilson")
    return float(interval.low), float(interval.high)


def label_accuracy(recovered: Tensor, truth: Tensor) -> float:
    """Share of the true labels that were recovered, order disregarded and repetitions counted, in [0, 1].

    Args:
        recovered: (batch,) int64.
        truth: (batch,) int64.

    Raises:
        ValueError: If the shapes differ or are empty.

    >>> label_accuracy(torch.tensor([3, 1, 1]), torch.tensor([1, 3, 2])).__round__(3)
    0.667
    """
    if recovered.dim() != 1 or recovered.shape != truth.shape or len(truth) == 0:
        raise ValueError(
            f"expected two label tensors of one shape (batch,), got {tuple(recovered.shape)} and {tuple(truth.shape)}"
        )
    matches = Counter(recovered.tolist()) & Counter(truth.tolist())
    return matches.total() / len(truth)


def match_batch(images: Tensor, truth: Tensor) -> Tensor:
    """Assignment of reconstructions to true images, since a gradient does not tell the order of its batch.

    The assignment with the smallest total squared error (Hungarian method, Kuhn 1955).

    Args:
        images: (batch, channels, height, width) in [0, 1].
        truth: The same shape.

    Returns:
        (batch,) int64 permutation: ``images[permutation]`` is in the order of ``truth``.

    Raises:
        ValueError: As for `mse`.
    """
    images, truth = _prepare(images, truth)
    return assign(images, truth)[1]


def assign(images: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of true images and images with the smallest total squared error, of as many as the fewer of both are.

    Args:
        images: (n, channels, height, width) in [0, 1], finite.
        truth: (m, channels, height, width), finite.

    Returns:
        Places in the truth, ascending, and those of the images that belong to them, both int64.
    """
    cost = torch.cdist(truth.double().flatten(1), images.double().flatten(1)).square()
    rows, columns = linear_sum_assignment(cost.cpu().numpy())
    return torch.as_tensor(rows, dtype=torch.int64), torch.as_tensor(columns, dtype=torch.int64)


def _prepare(images: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    if images.dim() != 4 or images.shape != truth.shape:
        raise ValueError(
            "expected two image tensors of one shape (n, channels, height, width), "
            f"got {tuple(images.shape)} and {tuple(truth.shape)}"
        )
    for which, value in (("images", images), ("truth", truth)):
        if not bool(value.isfinite().all()):
            raise ValueError(f"expected finite {which}, got NaN or infinity; leave diverged reconstructions out")
    return images.detach().double().clamp(0, 1), truth.detach().double().clamp(0, 1)
