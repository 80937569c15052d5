"""Attacks by name. One file for each published method; settings are fields, presets are data."""

from attacker.analytic.bottleneck_noise import RecoveredBottleneck, RecoveredNoise, recover_noise
from attacker.attacks.adaptive.defence_matched import DefenceMatched
from attacker.attacks.adaptive.dropout_inversion import DropoutInversion
from attacker.attacks.adaptive.ignore import Ignore
from attacker.attacks.adaptive.noise_recovery import NoiseRecovery
from attacker.attacks.adaptive.noise_restoring import NoiseRestoring
from attacker.attacks.base import Attack, Outcome, Progress, Reconstruction
from attacker.attacks.closed_form.activation_span import ActivationSpan
from attacker.attacks.closed_form.convolution_span import ConvolutionSpan
from attacker.attacks.closed_form.feature_inversion import FeatureInversion
from attacker.attacks.closed_form.first_layer import FirstLayerInversion
from attacker.attacks.closed_form.hybrid import Hybrid
from attacker.attacks.closed_form.layerwise import LayerwiseInversion
from attacker.attacks.closed_form.patch_embedding import PatchEmbedding
from attacker.attacks.closed_form.spear import Spear
from attacker.attacks.closed_form.then_refine import ThenRefine
from attacker.attacks.closed_form.through_bottleneck import ThroughBottleneck
from attacker.attacks.closed_form.through_branches import ThroughBranches
from attacker.attacks.gradient_matching.attack import GradientMatching
from attacker.attacks.gradient_matching.presets import PRESETS
from attacker.attacks.portfolio import Member, Portfolio
from attacker.attacks.registration import register_attack
from attacker.attacks.registry import ATTACKS, AttackEntry, build_attack
from attacker.attacks.statistics_only import StatisticsOnly

__all__ = [
    "register_attack",
    "NoiseRestoring",
    "NoiseRecovery",
    "Ignore",
    "DropoutInversion",
    "DefenceMatched",
    "ATTACKS",
    "ActivationSpan",
    "PRESETS",
    "Attack",
    "ConvolutionSpan",
    "AttackEntry",
    "FeatureInversion",
    "FirstLayerInversion",
    "GradientMatching",
    "Hybrid",
    "LayerwiseInversion",
    "Member",
    "Outcome",
    "PatchEmbedding",
    "Portfolio",
    "Progress",
    "RecoveredBottleneck",
    "RecoveredNoise",
    "Reconstruction",
    "ThenRefine",
    "ThroughBottleneck",
    "ThroughBranches",
    "Spear",
    "StatisticsOnly",
    "build_attack",
    "recover_noise",
]
