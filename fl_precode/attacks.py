"""Attacks as objects, by name, and of anyone's own.

An attack is an object of settings. Called with a `fl_precode.Victim` and observations it gives one `Reconstruction` for
each; it sees no truth. `fl_precode.audit` takes such objects, or their specs.

>>> import torch, fl_precode as flp
>>> from torch import nn
>>> plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
>>> image, label = torch.rand(1, 1, 8, 8), torch.tensor([3])
>>> loss = nn.functional.cross_entropy(plain(image), label)
>>> named = dict(plain.named_parameters())
>>> update = dict(zip(named, torch.autograd.grad(loss, list(named.values()))))
>>> seen = flp.Observation(
...     parameters={name: p.detach() for name, p in named.items()}, buffers={}, update=update,
...     kind="gradient", batch_size=1, protocol=flp.Protocol(name="fedsgd"), round=1, node="7",
... )
>>> victim = flp.Victim(model=plain, inputs=flp.InputSpec.parse("1x8x8", classes=10))
>>> (found,) = flp.attacks.FirstLayerInversion()(victim, [seen], generator=torch.Generator().manual_seed(0))
>>> bool(torch.allclose(found.inputs, image, atol=1e-4))
True
>>> search = flp.attacks.GradientMatching(optimiser=flp.attacks.Adam(iterations=600))
>>> search == flp.attacks.build_attack("inverting-gradients:iterations=600")
True

A search by gradient matching is composed of parts: a distance, an optimiser, priors, a start, restarts and a replay.

To add one: a subclass of `Attack` with `register_attack`, and an entry point of the group ``fl_precode.attacks``
(docs/how-to/adding-an-attack.md). A class that is no plug-in is named by its place, ``package.module:Class``. A
`LayerKind` with `register_layer` makes searches of models with layers of your own fast (docs/how-to/adding-a-layer.md).
"""

from attacker.attacks import (
    ATTACKS,
    PRESETS,
    ActivationSpan,
    Attack,
    AttackEntry,
    ConvolutionSpan,
    DefenceMatched,
    DropoutInversion,
    FeatureInversion,
    FirstLayerInversion,
    GradientMatching,
    Hybrid,
    Ignore,
    LayerwiseInversion,
    Member,
    NoiseRecovery,
    NoiseRestoring,
    Outcome,
    PatchEmbedding,
    Portfolio,
    Progress,
    Reconstruction,
    Spear,
    StatisticsOnly,
    ThenRefine,
    ThroughBottleneck,
    ThroughBranches,
    build_attack,
    recover_noise,
    register_attack,
)
from attacker.attacks.gradient_matching.parts import (
    L1,
    L2,
    LBFGS,
    Adam,
    BNStatistics,
    Cosine,
    Grey,
    GroupConsistency,
    ImageNorm,
    Normal,
    Patterned,
    RacedTotalVariation,
    ReplayMode,
    Restarts,
    Signs,
    SoftSign,
    TotalVariation,
    Uniform,
)
from attacker.attacks.selection import Choice, attacks_for
from attacker.gradients.ghost.layer_kinds import CompositeKind, LayerKind, register_layer
from attacker.reasons import Reason

__all__ = [
    "ATTACKS",
    "ActivationSpan",
    "Adam",
    "Attack",
    "AttackEntry",
    "BNStatistics",
    "Choice",
    "CompositeKind",
    "Cosine",
    "DefenceMatched",
    "DropoutInversion",
    "FeatureInversion",
    "ConvolutionSpan",
    "FirstLayerInversion",
    "GradientMatching",
    "Grey",
    "GroupConsistency",
    "Hybrid",
    "Ignore",
    "ImageNorm",
    "L1",
    "L2",
    "LBFGS",
    "LayerKind",
    "LayerwiseInversion",
    "Member",
    "NoiseRecovery",
    "NoiseRestoring",
    "Normal",
    "Outcome",
    "PRESETS",
    "PatchEmbedding",
    "Patterned",
    "Portfolio",
    "Progress",
    "RacedTotalVariation",
    "Reason",
    "Reconstruction",
    "ReplayMode",
    "Restarts",
    "Signs",
    "SoftSign",
    "Spear",
    "StatisticsOnly",
    "ThenRefine",
    "ThroughBottleneck",
    "ThroughBranches",
    "TotalVariation",
    "Uniform",
    "attacks_for",
    "build_attack",
    "recover_noise",
    "register_attack",
    "register_layer",
]
