"""Experiments small enough for tests: real images, few of everything."""

from __future__ import annotations

from dataclasses import replace

from attacker.experiments.precode.experiment import Experiment
from attacker.experiments.scales import SCALES

TINY = replace(
    SCALES["smoke"],
    victims=2,
    iterations=4,
    epochs=1,
    attacked=(0, 1),
    federations=0,
    search_rounds=30,
)


def tiny(**changes: object) -> Experiment:
    """LeNet on digits without and with PRECODE."""
    own = {"scale": TINY, "data": ("digits",), "models": ("lenet",), "defences": ("none", "precode"), "device": "cpu"}
    return Experiment(**{**own, **changes})  # type: ignore[arg-type]
