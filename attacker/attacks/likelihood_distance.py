"""Distance that fits an announced defence: the one that its noise makes likeliest."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from fl_precode.defences.registry import DEFENCES, defence_parts


class Noise(StrEnum):
    """What a defence on gradients does to the numbers of an update."""

    GAUSSIAN = "gaussian"
    LAPLACE = "laplace"
    PRUNED = "pruned"
    SIGNS = "signs"
    UNKNOWN_SCALE = "unknown scale"
    NONE = "none"


MATCHED_DISTANCES: Mapping[Noise, str] = MappingProxyType(
    {
        Noise.GAUSSIAN: "l2-relative",
        Noise.LAPLACE: "l1-relative",
        Noise.PRUNED: "cosine-kept",
        Noise.SIGNS: "signs",
        Noise.UNKNOWN_SCALE: "cosine",
        Noise.NONE: "cosine",
    }
)
"""Minus the logarithm of the update's likelihood, but for constants (Balunović et al., ICLR 2022), of one defence."""

DEFENCE_NOISE: Mapping[str, Noise] = MappingProxyType(
    {
        **dict.fromkeys(DEFENCES.built_in, Noise.NONE),
        "noise": Noise.GAUSSIAN,
        "gaussian": Noise.GAUSSIAN,
        "ppp": Noise.GAUSSIAN,
        # Stochastic rounding leaves the mean, and its errors are independent: the squared distance is the best linear
        # one, in units of each tensor's step (`attacker.attacks.announced_update`).
        "quantise": Noise.GAUSSIAN,
        "laplace": Noise.LAPLACE,
        "prune": Noise.PRUNED,
        "clip": Noise.UNKNOWN_SCALE,
        "sign": Noise.SIGNS,
        "dp": Noise.UNKNOWN_SCALE,
        # Clipped, and with Gaussian noise: the squared distance at the candidate's best scale is the cosine.
        "local-dp": Noise.UNKNOWN_SCALE,
        "central-dp": Noise.UNKNOWN_SCALE,
        "percentile": Noise.PRUNED,
        "svt": Noise.PRUNED,
    }
)
"""The noise of a defence by the name in its spec."""

_WITHOUT_SCALE: Mapping[str, str] = MappingProxyType({"l2-relative": "cosine", "l1-relative": "l1-direction"})


def matched_distance(defence: str, *, scale_known: bool = True) -> str:
    """The distance of `attacker.gradients.distances.DISTANCES` that fits an announced defence, all its parts together.

    Bayes-optimal for one kind of noise and a flat prior. Of several parts joined by ``+`` noise says how differences
    count, the heavier tail before the other; pruning, which of them count, because what was not sent must not; and
    clipping, signs or DP-SGD take the scale away: the distance is then that of the candidate at its best scale. Signs
    alone leave nothing but signs to compare; under noise of another kind they are compared as numbers.

    Args:
        defence: A defence spec, such as ``none``, ``noise:std=0.01`` or ``precode+prune:share=0.9``.
        scale_known: Whether the update tells the size of the gradient, and not its direction alone.

    Raises:
        ValueError: If a defence is unknown; the message lists those that are known.

    >>> matched_distance("laplace:std=0.001"), matched_distance("none"), matched_distance("prune+noise")
    ('l1-relative', 'cosine', 'l2-relative-kept')
    """
    kinds = {_noise(part.name) for part in defence_parts(defence)}
    noise = next((kind for kind in (Noise.LAPLACE, Noise.GAUSSIAN, Noise.SIGNS) if kind in kinds), Noise.NONE)
    distance = MATCHED_DISTANCES[noise]
    if {Noise.UNKNOWN_SCALE, Noise.SIGNS} & kinds or not scale_known:
        distance = _WITHOUT_SCALE.get(distance, distance)
    return f"{distance}-kept" if Noise.PRUNED in kinds else distance


def _noise(name: str) -> Noise:
    if name not in DEFENCE_NOISE:
        raise ValueError(f"the noise of the defence {name!r} is not known; it is for {', '.join(DEFENCE_NOISE)}")
    return DEFENCE_NOISE[name]
