"""Flower's differential privacy on a client's reply, bit for bit: `LocalDpMod`, and the clipping mods.

NumPy's arithmetic is part of what is deployed: arrays of no dimension (the counter of a batch normalisation, a single
scale) become scalars on the way, so that they count in the norm, and are neither clipped nor noisy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from fl_precode.defences.update_filters import Array, Draws, Record, UpdateFilter, check_positive

_SIDES: Final = ("client", "server")


def gaussian_std(*, sensitivity: float, epsilon: float, delta: float) -> float:
    """Standard deviation of the classical Gaussian mechanism, which is proved for epsilon up to 1 only.

    >>> round(gaussian_std(sensitivity=1e-4, epsilon=10, delta=1e-5), 9)
    4.8448e-05
    """
    return float(sensitivity * np.sqrt(2 * np.log(1.25 / delta)) / epsilon)


@dataclass(frozen=True, kw_only=True)
class LocalDp(UpdateFilter):
    """Flower's `LocalDpMod`: the update of all arrays together is clipped, then every array gets Gaussian noise.

    The noise is for the stated sensitivity, which nothing ties to the clip: what epsilon follows from both says
    `fl_precode.privacy`. Integer counters that would have to be scaled are refused, as Flower's mod fails on them.

    Attributes:
        clip: Largest L2 norm of the update, positive.
        sensitivity: That the noise is for; 0 adds none.
        epsilon: The stated budget of a round, positive.
        delta: The stated chance that it does not hold, above 0 and below 1.
    """

    clip: float
    sensitivity: float
    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        check_positive(clip=self.clip)
        if not 0 <= self.sensitivity < math.inf:
            raise ValueError(f"expected a finite sensitivity of 0 or more, got {self.sensitivity:g}")
        if not 0 < self.epsilon < math.inf:
            raise ValueError(
                f"expected epsilon to be positive and finite, got {self.epsilon:g}: the noise is divided by it, and "
                "epsilon 0 would ask for an infinite amount"
            )
        if not 0 < self.delta < 1:
            raise ValueError(
                f"expected delta to be above 0 and below 1, got {self.delta:g}: no Gaussian noise reaches delta 0 "
                "(Laplace noise does), and delta 1 promises nothing"
            )

    @property
    def std(self) -> float:
        """Standard deviation of the noise, in units of the update."""
        return gaussian_std(sensitivity=self.sensitivity, epsilon=self.epsilon, delta=self.delta)

    def filtered(self, received: Record, sent: Record, draws: Draws) -> dict[str, Array]:
        """See `UpdateFilter`."""
        clipped, _ = clipped_reply(received, sent, self.clip)
        return {name: self._noisy(name, value, draws) for name, value in clipped.items()}

    def _noisy(self, name: str, value: Array, draws: Draws) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):
            noise = np.asarray(draws.normal(0, self.std, value.shape)).astype(value.dtype)
            noisy = np.asarray(value + noise if value.ndim else value)
        if value.dtype.kind == "f" and not np.isfinite(noisy).all() and np.isfinite(value).all():
            largest = float(np.finfo(value.dtype).max)
            raise ValueError(
                f"noise of std {self.std:.3g} does not fit into the {value.dtype} of {name!r}, whose largest number is "
                f"{largest:.3g}: what overflows would be sent as infinity. Send float32, or lower the noise"
            )
        return noisy


@dataclass(frozen=True, kw_only=True)
class CentralDp(UpdateFilter):
    """What the server holds under Flower's central differential privacy, before its own noise.

    With clipping at the client (`fixedclipping_mod`, `adaptiveclipping_mod`) that is the clipped update; with clipping
    at the server it is the update as it was trained. Neither has any noise.

    Attributes:
        clip: Largest L2 norm of the update, positive; with ``quantile`` that of the first round.
        side: ``client`` or ``server``: who clips.
        noise_multiplier: Multiplier of the noise that the server adds to the mean of ``clients`` updates; 0 when not
            known.
        clients: Sampled in each round; 0 when not known.
        quantile: Quantile of the clients' norms that the clip adapts to; 0 for a fixed clip.
    """

    clip: float
    side: str = "client"
    noise_multiplier: float = 0.0
    clients: int = 0
    quantile: float = 0.0

    def __post_init__(self) -> None:
        check_positive(clip=self.clip)
        if self.side not in _SIDES:
            raise ValueError(f"expected side to be client or server, got {self.side!r}")
        if not 0 <= self.noise_multiplier < math.inf or self.clients < 0:
            raise ValueError(
                "expected a finite noise_multiplier and a number of clients of 0 or more, got "
                f"{self.noise_multiplier:g} and {self.clients}"
            )
        if not 0 <= self.quantile < 1:
            raise ValueError(f"expected a quantile of at least 0 and less than 1, got {self.quantile:g}")

    def filtered(self, received: Record, sent: Record, draws: Draws) -> dict[str, Array]:
        """See `UpdateFilter`."""
        del draws
        return dict(sent) if self.side == "server" else clipped_reply(received, sent, self.clip)[0]


def clipped_reply(received: Record, sent: Record, clip: float) -> tuple[dict[str, Array], bool]:
    """A reply whose update has an L2 norm of at most ``clip`` over all arrays, as Flower forms it.

    An update of zeros stays as it is; Flower divides by its norm and fails.

    Returns:
        The reply, and whether anything was clipped.

    Raises:
        ValueError: If arrays of integers would have to be scaled.
    """
    update = {name: np.subtract(value, received[name]) for name, value in sent.items()}
    norm = float(np.sqrt(sum(np.linalg.norm(np.ravel(value)) ** 2 for value in update.values())))
    factor = min(1.0, clip / norm) if norm > 0 else 1.0
    if factor < 1:
        update = {name: _scaled(name, value, factor) for name, value in update.items()}
    return {name: np.asarray(received[name] + value) for name, value in update.items()}, factor < 1


def _scaled(name: str, value: Array, factor: float) -> Array:
    if value.ndim == 0:
        return value  # a scalar of NumPy by now
    if value.dtype.kind != "f":
        raise ValueError(
            f"the update of {name!r} holds {value.dtype} counters and is to be clipped, times {factor:.3g}: Flower "
            "cannot scale integers in place and fails here. Leave counters out of what is sent, or send them as floats"
        )
    return np.asarray(value * factor)
