"""Priors on candidates: what images look like, and what the public knows about the clients' images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from attacker.engine.distance import total_variation


class Prior(ABC):
    """A penalty for every candidate, the smaller the likelier."""

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """(victims, restarts), differentiable, from (victims, restarts, batch, channels, height, width), normalised."""

    def keep(self, victims: Sequence[int], restarts: Sequence[Sequence[int]]) -> Self:
        """The same prior for some of the candidates; see `attacker.engine.problem.Objective.keep`."""
        del victims, restarts
        return self


class TotalVariation(Prior):
    """Anisotropic total variation, mean |dh| + mean |dv| (Geiping et al., NeurIPS 2020)."""

    def __call__(self, images: Tensor) -> Tensor:
        """Penalty of every candidate."""
        return total_variation(images)


class ImageNorm(Prior):
    """Mean square of all pixels in the normalised scale, where 0 is the mean image (Yin et al., CVPR 2021).

    The paper takes the norm; the mean square is smooth at 0 and does not grow with the size of the image.
    """

    def __call__(self, images: Tensor) -> Tensor:
        """Penalty of every candidate."""
        return images.square().flatten(2).mean(dim=2)


class GroupConsistency(Prior):
    """Mean square of the difference to the consensus of the victim's restarts (Yin et al., CVPR 2021).

    The consensus is a constant for the gradient. Restarts that are not finite have no say. It couples a victim's
    restarts: which of them are in the batch matters.

    Args:
        registered: Whether every restart is first shifted, image by image, to where it fits the plain mean of all
            restarts best, by a whole number of pixels around the edges; matching gradients of convolutions leaves the
            place of things open, and a mean of shifted copies would be blurred.
    """

    def __init__(self, *, registered: bool) -> None:
        self._registered = registered

    def __call__(self, images: Tensor) -> Tensor:
        """Penalty of every candidate."""
        fixed = images.detach()
        finite = fixed.isfinite().flatten(2).all(dim=2)
        consensus = _mean(fixed, finite)
        if self._registered:
            clean = torch.where(finite.reshape(*finite.shape, 1, 1, 1, 1), fixed, 0)
            consensus = _mean(shifted_to_fit(clean, consensus), finite)
        return (images - consensus).square().flatten(2).mean(dim=2)


def _mean(images: Tensor, counted: Tensor) -> Tensor:
    """Mean over the restarts that count, (victims, 1, ...)."""
    marks = counted.reshape(*counted.shape, *[1] * (images.dim() - 2))
    total = torch.where(marks, images, 0).sum(dim=1, keepdim=True)
    return total / marks.sum(dim=1, keepdim=True).clamp(min=1)


def shifted_to_fit(images: Tensor, goal: Tensor) -> Tensor:
    """Every image moved, around the edges, by the whole pixels that bring it closest to its goal.

    A move around the edges keeps the sum of squares, so that the smallest distance is the largest cross-correlation,
    which the Fourier transform gives for all moves at once.

    Args:
        images: (..., channels, height, width), finite.
        goal: The same shape, or one that broadcasts to it.
    """
    height, width = images.shape[-2:]
    spectrum = torch.fft.rfft2(goal) * torch.fft.rfft2(images).conj()
    fit = torch.fft.irfft2(spectrum.sum(dim=-3), s=(height, width)).flatten(-2)
    best = fit.argmax(dim=-1)
    down, right = best // width, best % width
    rows = (torch.arange(height, device=images.device) - down.unsqueeze(-1)) % height
    columns = (torch.arange(width, device=images.device) - right.unsqueeze(-1)) % width
    moved = images.gather(-2, rows[..., None, :, None].expand(images.shape))
    return moved.gather(-1, columns[..., None, None, :].expand(images.shape))
