"""The parts that gradient matching is composed of: small frozen objects, each of which checks itself.

A setting that makes sense with one part only belongs to this part. `Optimiser.check_beside` checks the few demands of
an optimiser on the parts beside it. A new distance, prior, start or optimiser is a new class of its kind.
"""

from attacker.attacks.gradient_matching.distances import L1, L2, Cosine, Distance, Signs, distance_named
from attacker.attacks.gradient_matching.optimisers import LBFGS, Adam, Optimiser, PieceProgress, Problem, Restarts
from attacker.attacks.gradient_matching.priors import (
    BNStatistics,
    GroupConsistency,
    ImageNorm,
    Prior,
    RacedTotalVariation,
    TotalVariation,
)
from attacker.attacks.gradient_matching.replay import ReplayMode
from attacker.optim.first_order import SoftSign
from attacker.optim.initialisation import Grey, Normal, Patterned, Start, Uniform

__all__ = [
    "L1",
    "L2",
    "LBFGS",
    "Adam",
    "BNStatistics",
    "Cosine",
    "Distance",
    "Grey",
    "GroupConsistency",
    "ImageNorm",
    "Normal",
    "Optimiser",
    "Patterned",
    "PieceProgress",
    "Prior",
    "Problem",
    "RacedTotalVariation",
    "ReplayMode",
    "Restarts",
    "Signs",
    "SoftSign",
    "Start",
    "TotalVariation",
    "Uniform",
    "distance_named",
]
