"""Mechanism of differential privacy in a defence, its claim, and the reason why others are none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from fl_precode.defences.dp_sgd import DpSgd
from fl_precode.defences.flower_dp import CentralDp, LocalDp
from fl_precode.defences.in_model import ModelDefence
from fl_precode.defences.nvflare_filters import SvtFilter
from fl_precode.defences.on_gradients import Clip, GaussianNoise, GradientDefence, LaplaceNoise, Prune, Sign
from fl_precode.defences.registry import DEFENCES, defence_parts, gradient_defence

Kind = Literal["gaussian", "dp-sgd", "central", "laplace", "sparse-vectors"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Claimed privacy of a mechanism, by its settings or by whoever runs it.

    Attributes:
        epsilon: For one release.
        delta: At which it is said to hold.
        sensitivity: That the noise was computed for; None where nothing says.
    """

    epsilon: float
    delta: float | None = None
    sensitivity: float | None = None


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """Noise on what was bounded.

    Attributes:
        kind: What it is, which decides how its releases are counted.
        noise: Standard deviation of Gaussian noise, scale of Laplace noise, in the units of ``clip``; for ``central``
            the noise multiplier, of a clip of 1. Positive.
        clip: Bound on the L2 norm of what gets the noise: the update, or one image's gradient (``dp-sgd``).
        claim: By its settings; None where they claim nothing.
        filter: Settings of sparse vectors.
        of_buffers: Whether running statistics are bounded and get noise too.
    """

    kind: Kind
    noise: float
    clip: float = 1.0
    claim: Claim | None = None
    filter: SvtFilter | None = None
    of_buffers: bool = False


@dataclass(frozen=True, kw_only=True)
class NoMechanism:
    """A defence that promises no differential privacy.

    Attributes:
        why: A sentence.
        claim: By its settings; None where they claim nothing.
    """

    why: str
    claim: Claim | None = None


_NO_NOISE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "none": "no noise is added",
        "percentile": "the percentile filter draws nothing at random: equal updates are sent as equal ones, and most "
        "numbers as they are",
        "prune": "pruning draws nothing at random: what it keeps is sent as it is",
        "clip": "clipping alone adds no noise: the direction of the update is sent as it is",
        "sign": "signs are taken without noise, and determine images well",
        "quantise": "stochastic rounding has the mean of the exact number, and sends large ones with certainty",
        "soteria": "Soteria withholds columns of one layer, and sends the others as they are",
        "noise": "nothing bounds the update before its noise, so that no noise is enough for the largest one",
        "laplace": "nothing bounds the update before its noise, so that no noise is enough for the largest one",
        "ppp": "noise is on some layers alone, and nothing bounds the update before it",
    }
)
"""Why a defence on gradients is no mechanism, by its name."""

_IN_MODEL: Final = (
    "the noise of {name} is drawn inside the model, which learns how much of it there is: nothing bounds what one "
    "image changes, and layers in front of it are sent without noise"
)
_DROPOUT: Final = "dropout leaves units out and adds no noise: nothing bounds what one image changes"


def mechanism_of(spec: str) -> Mechanism | NoMechanism:
    """The mechanism of a defence, or why there is none.

    What follows the noise is post-processing, and takes nothing away. Noise counts only behind a clip, with nothing in
    between that could lengthen the update.

    Args:
        spec: Spec of the whole defence; ``unknown`` for one that nobody announced.

    Raises:
        ValueError: If the spec is not one that exists.

    >>> mechanism_of("clip:max_norm=2+noise:std=1").kind, mechanism_of("prune:share=0.9").why[:29]
    ('gaussian', 'pruning draws nothing at rand')
    """
    if spec == "unknown":
        return NoMechanism(why="no defence was announced")
    chain = gradient_defence(spec)
    parts = [] if chain is None else list(chain.parts)
    clip: float | None = None
    for part in parts:
        found = _of_part(part, clip)
        if found is not None:
            return found
        clip = _bound_after(part, clip)
    return NoMechanism(why=_why_none(spec, parts))


def _of_part(part: GradientDefence, clip: float | None) -> Mechanism | NoMechanism | None:
    match part:
        case LocalDp():
            claim = Claim(epsilon=part.epsilon, delta=part.delta, sensitivity=part.sensitivity)
            if part.std == 0:
                why = (
                    f"sensitivity 0 gives noise of standard deviation 0, whatever epsilon is stated ({part.epsilon:g})"
                )
                return NoMechanism(why=why, claim=claim)
            return Mechanism(kind="gaussian", noise=part.std, clip=part.clip, claim=claim, of_buffers=True)
        case DpSgd():
            if part.noise_multiplier == 0:
                return NoMechanism(why="DP-SGD with noise multiplier 0 clips and adds no noise")
            return Mechanism(kind="dp-sgd", noise=part.noise_multiplier * part.max_norm, clip=part.max_norm)
        case CentralDp():
            if part.noise_multiplier > 0:
                return Mechanism(kind="central", noise=part.noise_multiplier)
        case SvtFilter():
            return Mechanism(
                kind="sparse-vectors", noise=2 * part.gamma / part.noise_var, clip=part.gamma,
                claim=Claim(epsilon=part.epsilon, delta=0.0), filter=part,
            )  # fmt: skip
        case GaussianNoise() if clip is not None:
            return Mechanism(kind="gaussian", noise=part.std, clip=clip)
        case LaplaceNoise() if clip is not None:
            return Mechanism(kind="laplace", noise=part.std / math.sqrt(2), clip=clip)
    return None


def _bound_after(part: GradientDefence, clip: float | None) -> float | None:
    """The bound on the norm of what a part leaves, given that of what it gets."""
    if isinstance(part, Clip):
        return part.max_norm if clip is None else min(part.max_norm, clip)
    if isinstance(part, CentralDp) and part.side == "client" and not part.quantile:
        return part.clip
    # A mean magnitude on every number is no longer than the numbers were.
    return clip if isinstance(part, Prune | Sign) else None


def _why_none(spec: str, parts: Sequence[GradientDefence]) -> str:
    names = [part.name for part in defence_parts(spec)]
    sentences = [_why_not(name) for name in names if name != "none" or len(names) == 1]
    if len(parts) > 1 and {"noise", "laplace"} & set(names) and "clip" in names:
        sentences.append("a clip bounds the noise's input only if it stands before it, with no rounding in between")
    return "; ".join(dict.fromkeys(sentences))


def _why_not(name: str) -> str:
    if name in _NO_NOISE:
        return _NO_NOISE[name]
    if name == "dropout":
        return _DROPOUT
    if name == "central-dp":
        return "no noise is announced that the server would add to the mean, and it holds each update before any"
    known = DEFENCES.get(name)
    if known is not None and issubclass(known.settings, ModelDefence):
        return _IN_MODEL.format(name=known.title or name)
    return f"no formula is known for {name}"
