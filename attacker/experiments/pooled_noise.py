"""The noise of all clients of a round, drawn once: the mean of independent Gaussian noises is Gaussian noise.

What a server gets from clients that add Gaussian noise last is, in distribution, the mean of what they would send
without it and one Gaussian tensor. That serves accuracy, for which only the mean counts, and never an attack, which
sees one client.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fl_precode.defences.registry import defence_parts
from fl_precode.federation.config import Settings


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """Clients without the noise that they would add last.

    Attributes:
        settings: Settings of the clients, which leave it out.
        std: Standard deviation of the noise on each client's update; 0 where nothing was taken out.
    """

    settings: Settings
    std: float

    def of_mean(self, weights: Sequence[float]) -> float:
        """Standard deviation of the weighted mean of the clients' noises."""
        return self.std * math.sqrt(sum(weight**2 for weight in weights)) / sum(weights)


def pooled(settings: Settings) -> Pooled:
    """The settings without the noise at the end of their defence, if that is Gaussian and added once a round.

    DP-SGD adds its noise to every local step, which later steps see; only of one step it can be taken out.
    """
    *before, last = defence_parts(settings.defence)
    texts = [part.text for part in before]
    if last.name == "noise":
        return _without(settings, texts, float(last.options["std"]))
    one_step = settings.protocol == "fedsgd"
    if last.name == "dp" and one_step:
        texts.append(f"dp:max_norm={last.options['max_norm']},noise_multiplier=0")
        std = float(last.options["max_norm"]) * float(last.options["noise_multiplier"])
        return _without(settings, texts, std / settings.batch_size)
    return Pooled(settings=settings, std=0.0)


def _without(settings: Settings, parts: Sequence[str], std: float) -> Pooled:
    return Pooled(settings=replace(settings, defence="+".join(parts) or "none"), std=std)
