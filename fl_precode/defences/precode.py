"""PRECODE's variational bottleneck.

Scheliga, Mäder, Seeland: PRECODE - A Generic Model Extension to Prevent Deep Gradient Leakage. WACV 2022
(arXiv 2108.04725).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fl_precode.randomness.random_layers import Bottleneck, KlTracker, sample_noise, track_kl

__all__ = [
    "Bottleneck",
    "KlTracker",
    "VariationalBottleneck",
    "check_settings",
    "kl_to_standard_normal",
    "sample_noise",
    "track_kl",
]

# Below it softplus(s) = exp(s) - exp(s)**2 / 2 to float64 accuracy, and its
# logarithm is taken from there: softplus itself would underflow to 0.
_SMALL_STAT = -20.0


def check_settings(latent: int, beta: float) -> None:
    """Refuse settings that no bottleneck can have.

    Raises:
        ValueError: If latent is not positive, or beta is negative or not finite.
    """
    if latent < 1:
        raise ValueError(f"expected a positive latent, got {latent}")
    if not (math.isfinite(beta) and beta >= 0):
        raise ValueError(f"expected a finite beta of 0 or more, got {beta}")


class VariationalBottleneck(Bottleneck):
    """PRECODE's bottleneck: encode to a Gaussian, sample, decode (WACV 2022, section 3).

    ``mu, s = encoder(flatten(h))``, ``sigma = softplus(s)``, ``z = mu + eps * sigma``, ``out = decoder(z)`` in the
    shape of h. eps ~ N(0, I) is fresh at every forward pass, in evaluation mode too. The KL term goes to the open
    `track_kl`. Random draws under `torch.func.vmap` need ``randomness="different"``.

    Args:
        features: Numbers per example that enter and leave.
        latent: Length K of z.
        beta: Weight of the KL term in the loss, per nat.

    Raises:
        ValueError: If a size is not positive or beta is negative or not finite.

    >>> sum(p.numel() for p in VariationalBottleneck(768).parameters())
    591104
    """

    def __init__(self, features: int, latent: int = 256, beta: float = 1e-3) -> None:
        super().__init__()
        if features < 1:
            raise ValueError(f"expected positive features, got {features}")
        check_settings(latent, beta)
        self.features = features
        self.latent = latent
        self.beta = beta
        self.encoder = nn.Linear(features, 2 * latent)
        self.decoder = nn.Linear(latent, features)

    def forward(self, hidden: Tensor) -> Tensor:
        """Pass ``hidden``, (batch, ...) with ``features`` numbers per example, through the bottleneck; same shape.

        Raises:
            ValueError: If an example does not have ``features`` numbers.
        """
        if hidden.dim() < 2 or math.prod(hidden.shape[1:]) != self.features:
            raise ValueError(
                f"expected (batch, ...) with {self.features} numbers per example before the bottleneck, "
                f"got {tuple(hidden.shape)}"
            )
        mu, stat = self.encoder(hidden.flatten(1)).split(self.latent, dim=1)  # (batch, latent) each
        kl = kl_to_standard_normal(mu, stat)
        self.record(kl, self.beta * kl)
        out: Tensor = self.decoder(mu + self.noise(mu) * F.softplus(stat))
        return out.reshape(hidden.shape)

    def latent_shape(self, hidden: Sequence[int]) -> tuple[int, ...]:
        """(latent,), whatever enters."""
        return (self.latent,)

    def extra_repr(self) -> str:
        """Settings in the module's printed form."""
        return f"features={self.features}, latent={self.latent}, beta={self.beta}"


def kl_to_standard_normal(mu: Tensor, stat: Tensor) -> Tensor:
    """KL(N(mu, softplus(stat)²) || N(0, I)) in nats per example: (batch, ...) twice to (batch,)."""
    if mu.dtype in (torch.float16, torch.bfloat16):  # squares and logarithms of half precision overflow early
        mu, stat = mu.float(), stat.float()
    sigma = F.softplus(stat)
    return 0.5 * (mu.square() + sigma.square() - 1 - 2 * _log_softplus(stat)).flatten(1).sum(dim=1)


def _log_softplus(stat: Tensor) -> Tensor:
    """log(softplus(s)), and s - exp(s)/2 where softplus would underflow to 0; finite gradients everywhere."""
    tiny = stat < _SMALL_STAT
    # Each branch sees only its own side: a NaN of the one not taken would survive `where` in the gradient. Masks, not
    # clamps, which pass no gradient at their bound.
    bound = torch.full_like(stat, _SMALL_STAT)
    usual = F.softplus(torch.where(tiny, bound, stat)).log()
    series = stat - torch.where(tiny, stat, bound).exp() / 2
    return torch.where(tiny, series, usual)
