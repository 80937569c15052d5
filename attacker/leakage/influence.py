"""The inversion influence function I2F: how far a change of the released gradient moves the image that it determines.

Zhang, Hong, Zhou: Understanding Deep Gradient Leakage via Inversion Influence Functions. NeurIPS 2023. With
G(g) = argmin ||gradient(x) - g||² for an attacker who always succeeds, dG/dg = (JJ^T)^-1 J, so that a gradient that is
off by delta leads to an image that is off by (JJ^T)^-1 J delta. Exact values come from `attacker.leakage.spectrum`;
this module has what needs products with J only, for models and images of any size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from attacker.leakage.jacobian import Jacobian
from attacker.leakage.krylov import Largest, TraceEstimate, largest_eigenvalue, solve_damped, trace_of
from attacker.leakage.spectrum import check_damping, inverse_terms

DAMPING = 1e-6
"""Share of the largest eigenvalue. Directions with smaller ones count less and less, so that results are too small.

On DLG's LeNet the spectrum reaches down to 1e-8, and a damping of 1e-6 halves I2F and no longer tells which image is at
risk; 1e-8 does, at 5800 products with JJ^T (docs/explanation/leakage.md).
"""


@dataclass(frozen=True, kw_only=True)
class Influence:
    """I2F of one change without forming J.

    Attributes:
        norm: Norm of the predicted error of the image, in pixels over the whole image.
        rmse: The same as a root mean squared error of pixels.
        error: (n,), the predicted error itself.
        bound: Share of ``norm`` by which the iterations may be off at most.
        steps: Products with JJ^T.
    """

    norm: float
    rmse: float
    error: Tensor
    bound: float
    steps: int


@dataclass(frozen=True, kw_only=True)
class ExpectedError:
    """E-I2F by stochastic Lanczos quadrature.

    Attributes:
        rmse: Expected for noise of standard deviation 1; multiply by the noise's.
        low: The same, two standard errors less.
        high: Two standard errors more.
        steps: Products with JJ^T.
    """

    rmse: float
    low: float
    high: float
    steps: int


def largest(
    jacobian: Jacobian, *, generator: Generator, start: Tensor | None = None, tolerance: float = 1e-3
) -> Largest:
    """The largest eigenvalue of JJ^T by Lanczos in image space.

    Args:
        jacobian: At one image.
        generator: Generator of the start where none is given.
        start: (n,), such as the eigenvector at another image or other weights.
        tolerance: Relative.
    """
    begin = _normal(jacobian, generator) if start is None else start
    return largest_eigenvalue(jacobian.gram_product, begin, tolerance=tolerance)


def lower_bound(jacobian: Jacobian, change: Tensor, top: float) -> float:
    """``I_lb = ||J delta|| / largest eigenvalue``, never more than I2F.

    It costs a single product and follows the size of the change, but not which image is at risk: across images at the
    same noise it is uncorrelated with real errors, and thousands of times too small (docs/explanation/leakage.md).

    Args:
        jacobian: At one image.
        change: (columns,), of the gradient.
        top: The largest eigenvalue or more, such as `Largest.upper`.

    Returns:
        Norm over the whole image, in pixels.
    """
    return float(jacobian.to_image(change).norm()) / top


def influence(
    jacobian: Jacobian,
    change: Tensor,
    top: float,
    *,
    damping: float = DAMPING,
    tolerance: float = 1e-2,
    steps: int = 2000,
) -> Influence:
    """I2F by conjugate gradients: ``||(JJ^T + damping * top * 1)^-1 J delta||``.

    Args:
        jacobian: At one image. In float64 the iterations converge sooner.
        change: (columns,), of the gradient.
        top: The largest eigenvalue.
        damping: Share of ``top``, positive.
        tolerance: Iterations end when the error is surely no larger than this share.
        steps: At most.

    Raises:
        ValueError: If the damping is not positive: JJ^T may be singular, and then has no inverse.
    """
    check_damping(damping)
    if damping == 0:
        raise ValueError(
            "without damping JJ^T must have full rank, which products cannot tell; give a positive share of the "
            f"largest eigenvalue such as {DAMPING:g}, or take attacker.leakage.spectrum for small images"
        )
    right = jacobian.to_image(change)
    solved = solve_damped(jacobian.gram_product, right, damping * top, tolerance=tolerance, steps=steps)
    norm = float(solved.solution.norm())
    rmse = norm / math.sqrt(len(right))
    return Influence(norm=norm, rmse=rmse, error=solved.solution, bound=solved.bound, steps=solved.steps)


def expected_error(
    jacobian: Jacobian,
    top: float,
    *,
    generator: Generator,
    damping: float = DAMPING,
    probes: int = 4,
    steps: int = 200,
) -> ExpectedError:
    """E-I2F, the error that noise leads to on average over its draws: a risk of the image alone.

    ``sqrt(mean of v / (v + damping * top)²)`` over the eigenvalues v of JJ^T, by stochastic Lanczos quadrature.

    Args:
        jacobian: At one image.
        top: The largest eigenvalue.
        generator: Generator of the probes.
        damping: Share of ``top``. Too few steps show as an estimate that is too large, small dampings need more.
        probes: Random vectors.
        steps: Lanczos steps for each.

    Raises:
        ValueError: If the damping is negative.
    """
    check_damping(damping)

    def function(values: Tensor) -> Tensor:
        return inverse_terms(values, damping * top)

    like = jacobian.gradient.new_empty(jacobian.rows)
    estimate = trace_of(jacobian.gram_product, function, like, probes=probes, steps=steps, generator=generator)
    return _expected(estimate, jacobian.rows)


def _expected(estimate: TraceEstimate, unknowns: int) -> ExpectedError:
    spread = 2 * (estimate.deviation or 0.0)
    low, middle, high = (
        math.sqrt(max(value, 0.0) / unknowns)
        for value in (estimate.value - spread, estimate.value, estimate.value + spread)
    )
    return ExpectedError(rmse=middle, low=low, high=high, steps=estimate.steps)


def _normal(jacobian: Jacobian, generator: Generator) -> Tensor:
    drawn = torch.randn(jacobian.rows, generator=generator, dtype=torch.float64, device=generator.device)
    return drawn.to(jacobian.gradient)
