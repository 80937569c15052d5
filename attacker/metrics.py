"""Similarity of images, success rates and matching: pure functions, one value for each image.

Images are (n, channels, height, width) on the [0, 1] scale, so denormalise first; values outside are clamped here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest
from skimage.metrics import structural_similarity
from torch import Tensor

# scikit-image ships annotations for some of its functions only; mypy sees this one as untyped.
_structural_similarity: Callable[..., Any] = structural_similarity

SSIM_WINDOW = 7
"""Side of the uniform SSIM window in pixels, scikit-image's default, which PRECODE used."""


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
    values = [
        float(_structural_similarity(one.numpy(), other.numpy(), win_size=SSIM_WINDOW, data_range=1.0, channel_axis=0))
        for one, other in zip(images.cpu(), truth.cpu(), strict=True)
    ]
    return torch.tensor(values, dtype=torch.float64)


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
    found = Counter(recovered.tolist()) & Counter(truth.tolist())
    return found.total() / len(truth)


def match_batch(images: Tensor, truth: Tensor) -> Tensor:
    """Which reconstruction belongs to which true image, since a gradient does not tell the order of its batch.

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
    cost = torch.cdist(truth.flatten(1), images.flatten(1)).square()
    _, columns = linear_sum_assignment(cost.cpu().numpy())
    return torch.as_tensor(columns, dtype=torch.int64)


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
