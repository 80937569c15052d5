"""Releases of a mechanism to a server: the protected unit, and how well the noise covers it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from fl_precode.privacy.mechanism import NoMechanism, mechanism_of

DELTA: Final = 1e-5
"""Of the epsilons that are stated where nobody named another."""

Unit = Literal["image", "client"]


@dataclass(frozen=True, kw_only=True)
class Released:
    """A Gaussian mechanism: what is released once is bounded, and Gaussian noise covers it.

    Attributes:
        unit: What is in or out: one image, where each image's gradient is clipped; or all of a client's images, where
            its update is clipped.
        mu: Largest norm of what the unit adds, over the deviation of the noise.
        clip: That norm, before any averaging.
        per_step: Whether each local step is a release; otherwise each round is one.
        claimed: Epsilon that the defence's own settings announce for one release; None where they announce none.
        delta: Delta of the stated epsilons.
        buffers: Whether running statistics are bounded and covered too.
    """

    unit: Unit
    mu: float
    clip: float
    per_step: bool = False
    claimed: float | None = None
    delta: float = DELTA
    buffers: bool = False


def released_by(defence: str) -> Released | None:
    """What a defence releases to the server; None without Gaussian noise that it gets.

    >>> released_by("dp:max_norm=2,noise_multiplier=0.5").mu, released_by("clip:max_norm=1+noise:std=0.1").unit
    (2.0, 'client')
    >>> released_by("noise:std=0.1") is None and released_by("clip:max_norm=1") is None
    True
    """
    try:
        mechanism = mechanism_of(defence)
    except ValueError:  # announced, and not one that exists
        return None
    if isinstance(mechanism, NoMechanism) or mechanism.kind not in ("gaussian", "dp-sgd"):
        return None
    of_steps, claim = mechanism.kind == "dp-sgd", mechanism.claim
    return Released(
        unit="image" if of_steps else "client",
        mu=mechanism.clip / mechanism.noise,
        clip=mechanism.clip,
        per_step=of_steps,
        claimed=None if claim is None else claim.epsilon,
        delta=(claim.delta if claim is not None else None) or DELTA,
        buffers=mechanism.of_buffers,
    )


def pure_epsilon(defence: str, numbers: int) -> float | None:
    """Epsilon of one release of Laplace noise to the server, of one client and each of its images; None for others.

    The clip bounds an update's L2 norm, and its L1 norm by the root of its numbers more. That is with or without the
    client, as for `Released`.

    Args:
        defence: Spec.
        numbers: In the update, 1 or more.

    >>> pure_epsilon("clip:max_norm=1+laplace:std=0.1", 100), pure_epsilon("laplace:std=0.1", 100)
    (141.4213562373095, None)
    """
    try:
        mechanism = mechanism_of(defence)
    except ValueError:  # announced, and not one that exists
        return None
    if isinstance(mechanism, NoMechanism) or mechanism.kind != "laplace":
        return None
    return mechanism.clip * math.sqrt(numbers) / mechanism.noise
