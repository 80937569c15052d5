"""PRECODE's variational bottleneck, its KL term and the source of its noise.

Scheliga, Mäder, Seeland: PRECODE - A Generic Model Extension to Prevent Deep Gradient Leakage. WACV 2022
(arXiv 2108.04725). Nothing is stored on the module, so that a model can be copied, pickled and transformed by
`torch.func` at any time; who wants the KL term opens `track_kl` around the forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Below it softplus(s) = exp(s) - exp(s)**2 / 2 to float64 accuracy, and its
# logarithm is taken from there: softplus itself would underflow to 0.
_SMALL_STAT = -20.0


class KlTracker:
    """The KL terms of every bottleneck that ran while the tracker was open. Made by `track_kl`."""

    def __init__(self) -> None:
        self._terms: list[tuple[Tensor, float]] = []

    def __len__(self) -> int:
        """How many bottlenecks ran."""
        return len(self._terms)

    def record(self, kl: Tensor, beta: float) -> None:
        """Keep one term: ``kl`` (batch,) in nats, one value per example, and its weight in the loss."""
        self._terms.append((kl.mean(), beta))

    def nats(self, like: Tensor) -> Tensor:
        """The batch mean of KL(N(mu, sigma²) || N(0, 1)), summed over latent units and bottlenecks.

        Args:
            like: Gives dtype and device (usually the logits).

        Returns:
            Scalar in nats; 0 when no bottleneck ran.
        """
        return self._sum(like, [kl for kl, _ in self._terms])

    def penalty(self, like: Tensor) -> Tensor:
        """What the defence adds to the loss: beta * KL, summed over bottlenecks; scalar, 0 when none ran."""
        return self._sum(like, [beta * kl for kl, beta in self._terms])

    @staticmethod
    def _sum(like: Tensor, terms: list[Tensor]) -> Tensor:
        total = torch.zeros((), dtype=like.dtype, device=like.device)
        for term in terms:
            total = total + term.to(total)
        return total


class _NoiseSource(Protocol):
    def draw(self, like: Tensor) -> Tensor: ...


class _DefaultNoise:
    """Torch's global generator; out of place, as vmap(randomness="different") asks for."""

    def draw(self, like: Tensor) -> Tensor:
        return torch.randn_like(like)


class _GeneratorNoise:
    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def draw(self, like: Tensor) -> Tensor:
        device = self._generator.device
        noise = torch.randn(like.shape, generator=self._generator, dtype=like.dtype, device=device)
        return noise.to(like.device)


class _GivenNoise:
    def __init__(self, values: Sequence[Tensor]) -> None:
        self._values = list(values)
        self._used = 0

    def draw(self, like: Tensor) -> Tensor:
        if self._used == len(self._values):
            raise ValueError(
                f"sample_noise was given {len(self._values)} noise tensor(s), but a further bottleneck ran; "
                "give one for each bottleneck and forward pass, in execution order"
            )
        value = self._values[self._used]
        if value.shape != like.shape:
            raise ValueError(
                f"expected noise tensor {self._used} to have shape (batch, latent) = {tuple(like.shape)}, "
                f"got {tuple(value.shape)}"
            )
        self._used += 1
        return value.to(like)

    def check_used(self) -> None:
        if self._used != len(self._values):
            raise ValueError(
                f"sample_noise was given {len(self._values)} noise tensor(s), but only {self._used} bottleneck(s) ran; "
                "give one for each bottleneck and forward pass, in execution order"
            )


_tracker: ContextVar[KlTracker | None] = ContextVar("fl_precode_kl_tracker", default=None)
_noise: ContextVar[_NoiseSource | None] = ContextVar("fl_precode_noise", default=None)


@contextmanager
def track_kl() -> Iterator[KlTracker]:
    """Collect the KL terms of the forward passes inside the block.

    Open it inside the function that `torch.func` transforms; only the innermost open tracker records, so that tensors
    of an inner transformation never leak into an outer one.

    Yields:
        The tracker, to be asked after (or in) the block.

    >>> bottleneck = VariationalBottleneck(4, latent=2)
    >>> with track_kl() as kl:
    ...     out = bottleneck(torch.zeros(3, 4))
    >>> len(kl), kl.nats(out).shape
    (1, torch.Size([]))
    """
    tracker = KlTracker()
    token = _tracker.set(tracker)
    try:
        yield tracker
    finally:
        _tracker.reset(token)


@contextmanager
def sample_noise(generator: torch.Generator | None = None, values: Sequence[Tensor] | None = None) -> Iterator[None]:
    """Say where the bottlenecks inside the block take their eps from; with neither argument, torch's global generator.

    Args:
        generator: Draw standard normal noise from it.
        values: Explicit eps, (batch, latent) each, one for each bottleneck and forward pass in execution order.
            Gradients flow through them.

    Raises:
        ValueError: If both are given, a value has the wrong shape, or their number is not that of the bottlenecks run.

    >>> bottleneck = VariationalBottleneck(4, latent=2)
    >>> with sample_noise(values=[torch.zeros(1, 2)]):
    ...     quiet = bottleneck(torch.ones(1, 4))
    >>> torch.equal(quiet, bottleneck.decoder(bottleneck.encoder(torch.ones(1, 4))[:, :2]))
    True
    """
    if generator is not None and values is not None:
        raise ValueError("expected a generator or explicit values for the noise, got both; give one of them")
    given = _GivenNoise(values) if values is not None else None
    source: _NoiseSource = given or (_GeneratorNoise(generator) if generator is not None else _DefaultNoise())
    token = _noise.set(source)
    try:
        yield
    finally:
        _noise.reset(token)
    if given is not None:
        given.check_used()


def check_settings(latent: int, beta: float) -> None:
    """Refuse settings that no bottleneck can have.

    Raises:
        ValueError: If latent is not positive, or beta is negative or not finite.
    """
    if latent < 1:
        raise ValueError(f"expected a positive latent, got {latent}")
    if not (math.isfinite(beta) and beta >= 0):
        raise ValueError(f"expected a finite beta of 0 or more, got {beta}")


class VariationalBottleneck(nn.Module):
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
        tracker = _tracker.get()
        if tracker is not None:
            tracker.record(_kl_to_standard_normal(mu, stat), self.beta)
        eps = (_noise.get() or _DefaultNoise()).draw(mu)
        out: Tensor = self.decoder(mu + eps * F.softplus(stat))
        return out.reshape(hidden.shape)

    def extra_repr(self) -> str:
        """Settings in the module's printed form."""
        return f"features={self.features}, latent={self.latent}, beta={self.beta}"


def _kl_to_standard_normal(mu: Tensor, stat: Tensor) -> Tensor:
    """KL(N(mu, softplus(stat)²) || N(0, I)) in nats per example: (batch, latent) twice to (batch,)."""
    if mu.dtype in (torch.float16, torch.bfloat16):  # squares and logarithms of half precision overflow early
        mu, stat = mu.float(), stat.float()
    sigma = F.softplus(stat)
    return 0.5 * (mu.square() + sigma.square() - 1 - 2 * _log_softplus(stat)).sum(dim=1)


def _log_softplus(stat: Tensor) -> Tensor:
    """log(softplus(s)), and s - exp(s)/2 where softplus would underflow to 0; finite gradients everywhere."""
    tiny = stat < _SMALL_STAT
    # Each branch sees only its own side: a NaN of the one not taken would survive `where` in the gradient. Masks, not
    # clamps, which pass no gradient at their bound.
    bound = torch.full_like(stat, _SMALL_STAT)
    usual = F.softplus(torch.where(tiny, bound, stat)).log()
    series = stat - torch.where(tiny, stat, bound).exp() / 2
    return torch.where(tiny, series, usual)
