"""Attacks by name. One file for each published method; settings are fields, presets are data."""

from attacker.attacks.attack import Attack, Outcome, Progress, Reconstruction
from attacker.attacks.first_layer import FirstLayerInversion
from attacker.attacks.gradient_matching import GradientMatching
from attacker.attacks.hybrid import Hybrid
from attacker.attacks.layerwise import LayerwiseInversion
from attacker.attacks.portfolio import Member, Portfolio
from attacker.attacks.presets import PRESETS
from attacker.attacks.registry import ATTACKS, AttackEntry, build_attack
from attacker.attacks.then_refine import ThenRefine
from attacker.attacks.through_bottleneck import ThroughBottleneck

__all__ = [
    "ATTACKS",
    "PRESETS",
    "Attack",
    "AttackEntry",
    "FirstLayerInversion",
    "GradientMatching",
    "Hybrid",
    "LayerwiseInversion",
    "Member",
    "Outcome",
    "Portfolio",
    "Progress",
    "Reconstruction",
    "ThenRefine",
    "ThroughBottleneck",
    "build_attack",
]
