"""Which distance fits an announced defence: the one that its noise makes likeliest."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from fl_precode.defences import DEFENCES, defence_parts


class Noise(StrEnum):
    """What a defence on gradients does to the numbers of an update."""

    GAUSSIAN = "gaussian"
    LAPLACE = "laplace"
    PRUNED = "pruned"
    UNKNOWN_SCALE = "unknown scale"


MATCHED_DISTANCES: Mapping[Noise, str] = MappingProxyType(
    {
        Noise.GAUSSIAN: "l2",
        Noise.LAPLACE: "l1",
        Noise.PRUNED: "cosine-kept",
        Noise.UNKNOWN_SCALE: "cosine",
    }
)
"""Minus the logarithm of the update's likelihood, but for constants (Balunović et al., ICLR 2022)."""

DEFENCE_NOISE: Mapping[str, Noise] = MappingProxyType(
    {
        **dict.fromkeys(DEFENCES, Noise.UNKNOWN_SCALE),
        "noise": Noise.GAUSSIAN,
        "gaussian": Noise.GAUSSIAN,
        "laplace": Noise.LAPLACE,
        "prune": Noise.PRUNED,
    }
)
"""The noise of a defence by the name in its spec; those that leave the gradient as it is have none of known scale."""


def matched_distance(defence: str) -> str:
    """The distance of `attacker.engine.DISTANCES` that fits an announced defence.

    Bayes-optimal for one kind of noise and a flat prior. Of several defences joined by ``+`` pruning decides, because
    what was not sent must not count; else the first that adds noise of a known kind.

    Args:
        defence: A defence spec, such as ``none``, ``noise:std=0.01`` or ``precode+prune:share=0.9``.

    Raises:
        ValueError: If a defence is unknown; the message lists those that are known.

    >>> matched_distance("laplace:std=0.001"), matched_distance("none")
    ('l1', 'cosine')
    """
    kinds = [_noise(part.name) for part in defence_parts(defence)]
    if Noise.PRUNED in kinds:
        scaled = any(kind in (Noise.GAUSSIAN, Noise.LAPLACE) for kind in kinds)
        return "l2-kept" if scaled else MATCHED_DISTANCES[Noise.PRUNED]
    known = [kind for kind in kinds if kind is not Noise.UNKNOWN_SCALE]
    return MATCHED_DISTANCES[known[0] if known else Noise.UNKNOWN_SCALE]


def _noise(name: str) -> Noise:
    if name not in DEFENCE_NOISE:
        raise ValueError(f"the noise of the defence {name!r} is not known; it is for {', '.join(DEFENCE_NOISE)}")
    return DEFENCE_NOISE[name]
