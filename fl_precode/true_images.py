"""True images as people hold them, brought to one form: float32 in [0, 1] with class numbers. For evaluation only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from fl_precode.loss import set_numbers

Numbers = float | Sequence[float] | None
"""A number for all channels, or one for each."""

_TOLERANCE: Final = 0.01
"""By how much a value may leave [0, 1]: interpolation overshoots, and normalisation that is undone rounds."""


def true_batch(images: Any, labels: Any, *, mean: Numbers = None, std: Numbers = None) -> tuple[Tensor, Tensor]:
    """Images and labels as an audit compares them.

    Args:
        images: Tensor or array, (batch, channels, height, width), or (batch, height, width) of grey images, or
            (channels, height, width) with one label. Whole bytes are taken as 0 to 255, floats must be in [0, 1].
        labels: Class numbers, (batch,) or (batch, 1); or rows of zeros and ones, (batch, classes), where an image may
            have several classes or none: `fl_precode.loss.set_numbers`.
        mean: Mean of the normalisation to be undone, on the scale of [0, 1]; 0 by default.
        std: Likewise; 1 by default.

    Returns:
        (batch, channels, height, width) float32 in [0, 1], and (batch,) int64, both on the CPU.

    Raises:
        ValueError: If they are something else; the text says what to do.

    >>> images, labels = true_batch(np.full((3, 2, 2), 128, dtype=np.uint8), 7)
    >>> images.shape, labels
    (torch.Size([1, 3, 2, 2]), tensor([7]))
    """
    classes = _labels(labels)
    pixels = _four_axes(_tensor(images, "images"), len(classes))
    if pixels.dtype == torch.uint8:
        if mean is not None or std is not None:
            raise ValueError("images of bytes (uint8) are not normalised; leave mean and std out")
        return pixels.to(torch.float32) / 255, classes
    values = pixels.to(torch.float32)
    values = values * _by_channel(std, 1.0, values, "std") + _by_channel(mean, 0.0, values, "mean")
    _check_range(values, undone=mean is not None or std is not None)
    return values.clamp(0, 1), classes


def _tensor(values: Any, what: str) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().cpu()
    if isinstance(values, (list, tuple)) and values and isinstance(values[0], Tensor):
        try:
            return torch.stack([one.detach().cpu() for one in values])
        except RuntimeError as error:
            raise ValueError(f"expected {what} of one shape, got several ({error})") from error
    try:
        return torch.tensor(np.asarray(values))
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected {what} as a tensor or an array of numbers, got {type(values).__name__}") from error


def _labels(labels: Any) -> Tensor:
    found = _tensor(labels, "labels")
    if found.dim() == 2 and found.shape[1] > 1:
        if bool(((found != 0) & (found != 1)).any()):
            raise ValueError(
                "expected labels as class numbers or rows of zeros and ones, got rows with other values: soft labels, "
                "as of mixup or smoothing, are not replayed. Give the class numbers, labels.argmax(1), for the images "
                "to be compared; searches then replay these alone"
            )
        single = bool((found.sum(dim=1) == 1).all())  # of any number of classes
        found = found.argmax(dim=1) if single else set_numbers(found)
    found = found.reshape(-1) if found.dim() == 0 or (found.dim() == 2 and found.shape[1] == 1) else found
    if found.dim() != 1 or not len(found):
        raise ValueError(f"expected labels of shape (batch,), at least one, got {tuple(found.shape)}")
    whole = found.to(torch.int64)
    if bool((whole != found).any()) or int(whole.min()) < 0:
        raise ValueError("expected labels to be class numbers, whole and from 0 on")
    return whole


def _four_axes(images: Tensor, count: int) -> Tensor:
    shape = tuple(images.shape)
    if images.dim() == 2 and count == 1:
        images = images[None, None]
    elif images.dim() == 3:
        images = images[None] if count == 1 and shape[0] <= 4 else images[:, None]
    if images.dim() != 4 or len(images) != count or 0 in images.shape:
        raise ValueError(
            f"expected images of shape (batch, channels, height, width) with one label each, got {shape} and {count} "
            f"label{'' if count == 1 else 's'}"
        )
    if images.shape[1] > 4 and images.shape[3] in (1, 3):
        raise ValueError(
            f"expected images of shape (batch, channels, height, width), got {shape}, where the channels seem to be "
            "last; move them: images.permute(0, 3, 1, 2), or images.transpose(0, 3, 1, 2) of an array"
        )
    return images


def _by_channel(numbers: Numbers, default: float, images: Tensor, what: str) -> Tensor:
    found = torch.as_tensor(default if numbers is None else numbers, dtype=torch.float32).detach().cpu().reshape(-1)
    if len(found) not in (1, images.shape[1]):
        raise ValueError(f"expected {what} as one number or {images.shape[1]}, one for each channel, got {len(found)}")
    return found[:, None, None]


def _check_range(images: Tensor, *, undone: bool) -> None:
    if not bool(images.isfinite().all()):
        raise ValueError("expected finite images, got values that are infinite or not a number")
    low, high = float(images.min()), float(images.max())
    if low >= -_TOLERANCE and high <= 1 + _TOLERANCE:
        return
    advice = (
        "if they are normalised, give the numbers of the normalisation as well, such as "
        "mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)"
    )
    if undone:
        advice = "are mean and std those by which these very images were normalised?"
    elif low >= 0 and 2 < high <= 255:
        advice = "divide them by 255"
    raise ValueError(f"expected images in [0, 1], got values from {low:.3g} to {high:.3g}; {advice}")
