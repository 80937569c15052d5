"""Best fit to a changed gradient: matching by L-BFGS, from the true image or from random pixels.

From the truth on it is no attack that anyone could run: it says where an attacker ends who always succeeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attacker.leakage import Released, Spectrum

_RIDGE = 1e-12
_HISTORY = 100


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """An image whose gradient is as close to the target as the search came.

    Attributes:
        pixels: In [0, 1] but for the error, (1, channels, height, width).
        rmse: Root mean squared difference to the true image.
        distances: ``||gradient(image) - target||²`` at the start and at the end.
    """

    pixels: Tensor
    rmse: float
    distances: tuple[float, float]


def fit_from_truth(
    of: Released, truth: Tensor, target: Tensor, spectrum: Spectrum | None, *, iterations: int
) -> Fitted:
    """From the true image.

    Args:
        of: The gradient as a function of the image.
        truth: (1, channels, height, width) in [0, 1].
        target: (columns,), the changed gradient.
        spectrum: Spectrum of J at the truth: the search then runs in coordinates in which JJ^T is the unit matrix, so
            that it converges in every direction; None for plain pixels, where weak directions hardly move.
        iterations: Iterations of L-BFGS.
    """
    if spectrum is None:
        return _search(of, truth, target, lambda z: z.reshape(truth.shape) + truth, None, iterations, truth * 0)
    back = spectrum.vectors * (spectrum.values + _RIDGE * spectrum.values[0]).rsqrt()
    return _search(of, truth, target, lambda z: (back @ z).reshape(truth.shape) + truth, back, iterations, truth * 0)


def fit_from_random(
    of: Released, truth: Tensor, target: Tensor, *, iterations: int, generator: torch.Generator
) -> Fitted:
    """From uniform random pixels; the truth is only compared with at the end."""
    start = torch.rand(truth.shape, generator=generator, dtype=torch.float64).to(truth)
    return _search(of, truth, target, lambda z: z.reshape(truth.shape), None, iterations, start)


def _search(
    of: Released,
    truth: Tensor,
    target: Tensor,
    picture: Callable[[Tensor], Tensor],
    back: Tensor | None,
    iterations: int,
    start: Tensor,
) -> Fitted:
    """L-BFGS with a strong-Wolfe line search over z, ``picture(z)`` being the image."""
    z = start.flatten().clone().requires_grad_(True)
    optimiser = torch.optim.LBFGS(
        [z], max_iter=iterations, max_eval=2 * iterations, history_size=_HISTORY, line_search_fn="strong_wolfe",
        tolerance_grad=0, tolerance_change=0,
    )  # fmt: skip

    def closure() -> Tensor:
        distance, gradient = _matching(of, picture(z.detach()), target)
        z.grad = gradient.flatten() if back is None else back.T @ gradient.flatten()
        return distance

    first = float(closure())
    optimiser.step(closure)  # type: ignore[no-untyped-call]
    image = picture(z.detach())
    last = float(_matching(of, image, target)[0])
    return Fitted(pixels=image, rmse=float((image - truth).square().mean().sqrt()), distances=(first, last))


def _matching(of: Released, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """``||gradient(image) - target||²`` and its derivative with respect to the image."""
    pixels = image.detach().requires_grad_(True)
    weights = {name: value.requires_grad_(True) for name, value in of.weights.items()}
    loss = of.loss(weights, pixels, of.noise)
    gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True, materialize_grads=True)
    distance = (torch.cat([gradient.flatten() for gradient in gradients]) - target).square().sum()
    return distance.detach(), torch.autograd.grad(distance, pixels)[0]
