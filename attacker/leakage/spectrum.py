"""Eigenvalues of JJ^T: the pixels that a gradient determines, and the effect of noise on the image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attacker.leakage.jacobian import Jacobian

TOLERANCE = 1e-12
"""Share of the largest eigenvalue below which one counts as zero. Rounding in float64 leaves about 1e-15."""
DAMPING = 1e-12
"""Share of the largest eigenvalue that is added to each before the inverse, by default: no smaller one counts."""


@dataclass(frozen=True, kw_only=True)
class Eigenvalues:
    """Eigenvalues of JJ^T at one image (or batch of images).

    Attributes:
        values: (n,), the largest first, none negative.
        shape: (batch, channels, height, width) of the n unknown pixels.
        tolerance: Share of the largest eigenvalue below which one counts as zero.
    """

    values: Tensor
    shape: tuple[int, ...]
    tolerance: float

    @property
    def unknowns(self) -> int:
        """Pixels to be found, n."""
        return len(self.values)

    @property
    def rank(self) -> int:
        """Directions in image space that change the gradient at all."""
        return int((self.values > self.tolerance * self.values[0]).sum())

    @property
    def largest(self) -> float:
        """The largest eigenvalue."""
        return float(self.values[0])

    @property
    def gap(self) -> tuple[float, float | None]:
        """The smallest eigenvalue that counts and the largest that does not, as shares of the largest of all.

        A wide gap means that the rank does not hang on the tolerance; None when the rank is full.
        """
        rank, shares = self.rank, self.values / self.values[0]
        return float(shares[rank - 1]), float(shares[rank]) if rank < self.unknowns else None

    def expected_rmse(self, std: float, *, damping: float = DAMPING) -> float:
        """Root mean squared error of the image that independent noise N(0, std²) on the gradient leads to (E-I2F).

        ``std * sqrt(mean of 1 / eigenvalue)``, from E||(JJ^T)^-1 J delta||² = std² tr (JJ^T)^-1; with damping e,
        eigenvalue / (eigenvalue + e)² in place of the inverse. Directions that the gradient does not determine at all
        count nothing here: see `rank`.
        """
        terms = inverse_terms(self.values[: self.rank], self._absolute(damping))
        return std * math.sqrt(float(terms.sum()) / self.unknowns)

    def noise_for(self, rmse: float, *, damping: float = DAMPING) -> float:
        """The standard deviation of noise that leads to this root mean squared error."""
        return rmse / self.expected_rmse(1.0, damping=damping)

    def _absolute(self, damping: float) -> float:
        check_damping(damping)
        if damping == 0 and self.rank < self.unknowns:
            raise ValueError(
                f"JJ^T is singular (rank {self.rank} of {self.unknowns}), so it has no inverse without damping; give "
                f"a positive share of the largest eigenvalue, such as {DAMPING:g}: it leaves out what no attack can "
                "determine, and changes the rest little"
            )
        return damping * self.largest


@dataclass(frozen=True, kw_only=True)
class Spectrum(Eigenvalues):
    """Eigenvalues and eigenvectors of JJ^T at one image (or batch of images).

    Attributes:
        vectors: (n, n), orthonormal columns in the order of the values.
    """

    vectors: Tensor

    def lost(self) -> Tensor:
        """Share of each pixel that lies in directions that leave the gradient as it is, in ``shape``, from 0 to 1.

        The diagonal of the projector on the null space of J^T: 1 for a pixel of which nothing is seen.
        """
        return self.vectors[:, self.rank :].square().sum(dim=1).clamp(0, 1).reshape(self.shape)

    def influence(self, products: Tensor, *, damping: float = DAMPING) -> Tensor:
        """I2F, ``||(JJ^T + damping * largest * 1)^-1 J delta||`` (Zhang et al., NeurIPS 2023): norms of image errors.

        Args:
            products: (..., n), ``J delta`` of each change of the gradient.
            damping: Share of the largest eigenvalue; 0 for the plain inverse.

        Returns:
            (...), Euclidean norms in pixels; divide by ``sqrt(n)`` for a root mean squared error.

        Raises:
            ValueError: If the damping is negative, or 0 although JJ^T is singular.
        """
        norms: Tensor = self.error(products, damping=damping).norm(dim=-1)
        return norms

    def error(self, products: Tensor, *, damping: float = DAMPING) -> Tensor:
        """The predicted errors themselves, (..., n); 0 along directions that count as undetermined. See `influence`."""
        inverse = torch.zeros_like(self.values)
        inverse[: self.rank] = 1 / (self.values[: self.rank] + self._absolute(damping))
        return (products.to(self.vectors) @ self.vectors * inverse) @ self.vectors.T

    def direction(self, place: int) -> Tensor:
        """Eigenvector ``place``, 0 for the one that a gradient determines best, -1 for the worst; in ``shape``."""
        return self.vectors[:, place].reshape(self.shape)


def spectrum(jacobian: Jacobian, *, tolerance: float = TOLERANCE) -> Spectrum:
    """Eigenvalues and eigenvectors of JJ^T; exact, for images of up to `EXACT_NUMBERS` numbers.

    Unknown noise of bottlenecks is eliminated: what remains is what the gradient says about the pixels when the
    attacker fits the noise as well, the Schur complement ``J_x (1 - J_e^T (J_e J_e^T)^+ J_e) J_x^T``.

    Args:
        jacobian: At one image.
        tolerance: Share of the largest eigenvalue below which one counts as zero.

    Raises:
        ValueError: If there are too many unknowns, or none of them reaches the gradient.
    """
    values, vectors = torch.linalg.eigh(_gram(jacobian, tolerance))
    _check_image_counts(values)
    return Spectrum(
        values=values.flip(0).clamp(min=0),
        vectors=vectors.flip(1),
        shape=jacobian.unknowns[0],
        tolerance=tolerance,
    )


def eigenvalues(jacobian: Jacobian, *, tolerance: float = TOLERANCE) -> Eigenvalues:
    """The eigenvalues of `spectrum` alone, for a third of its work beside that of JJ^T; arguments and errors alike."""
    values = torch.linalg.eigvalsh(_gram(jacobian, tolerance))
    _check_image_counts(values)
    return Eigenvalues(values=values.flip(0).clamp(min=0), shape=jacobian.unknowns[0], tolerance=tolerance)


def _gram(jacobian: Jacobian, tolerance: float) -> Tensor:
    """JJ^T of the pixels, with unknown noise eliminated."""
    gram, pixels = jacobian.gram(), math.prod(jacobian.unknowns[0])
    return _without_noise(gram, pixels, tolerance) if pixels < len(gram) else gram


def _check_image_counts(values: Tensor) -> None:
    if float(values[-1]) <= 0:
        raise ValueError("the gradient does not depend on the image; expected a model that uses its input")


def inverse_terms(values: Tensor, damping: float) -> Tensor:
    """``v / (v + damping)²`` for eigenvalues v, 0 for v = 0: what noise of variance 1 does along each eigenvector."""
    terms: Tensor = torch.where(values > 0, values / (values + damping).square(), 0)
    return terms


def check_damping(damping: float) -> None:
    """Refuse a damping that is negative or not finite.

    Raises:
        ValueError: If it is.
    """
    if not 0 <= damping < math.inf:
        raise ValueError(f"expected a damping of 0 or more, a share of the largest eigenvalue, got {damping}")


def _without_noise(gram: Tensor, pixels: int, tolerance: float) -> Tensor:
    """The Schur complement of the noise's block; directions of noise that change nothing are left out."""
    values, vectors = torch.linalg.eigh(gram[pixels:, pixels:])
    visible = values > tolerance * values[-1]
    mixed = gram[:pixels, pixels:] @ (vectors[:, visible] / values[visible].sqrt())
    left: Tensor = gram[:pixels, :pixels] - mixed @ mixed.T
    return left
