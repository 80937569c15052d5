"""Attacks by name. One file for each published method; settings are fields, presets are data."""

from attacker.attacks.attack import Attack, Outcome, Progress, Reconstruction
from attacker.attacks.defence_matched import DefenceMatched
from attacker.attacks.dropout_inversion import DropoutInversion
from attacker.attacks.first_layer import FirstLayerInversion
from attacker.attacks.gradient_matching import GradientMatching
from attacker.attacks.hybrid import Hybrid
from attacker.attacks.ignoring import Ignore
from attacker.attacks.layerwise import LayerwiseInversion
from attacker.attacks.noise_recovery import NoiseRecovery
from attacker.attacks.noise_restoring import NoiseRestoring
from attacker.attacks.portfolio import Member, Portfolio
from attacker.attacks.presets import PRESETS
from attacker.attacks.recovered_noise import RecoveredBottleneck, RecoveredNoise, recover_noise
from attacker.attacks.registration import register_attack
from attacker.attacks.registry import ATTACKS, AttackEntry, build_attack
from attacker.attacks.spear import Spear
from attacker.attacks.then_refine import ThenRefine
from attacker.attacks.through_bottleneck import ThroughBottleneck

__all__ = [
    "register_attack",
    "NoiseRestoring",
    "NoiseRecovery",
    "Ignore",
    "DropoutInversion",
    "DefenceMatched",
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
    "RecoveredBottleneck",
    "RecoveredNoise",
    "Reconstruction",
    "ThenRefine",
    "ThroughBottleneck",
    "Spear",
    "build_attack",
    "recover_noise",
]
