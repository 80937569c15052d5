"""Batched gradient matching. Candidates carry the axes (victims, restarts, batch, channels, height, width)."""

from attacker.engine.batch_statistics import BatchStatistics, why_no_batch_statistics
from attacker.engine.choose import candidates_at_once, gradient_products
from attacker.engine.dense import DenseProducts
from attacker.engine.descent import Descent
from attacker.engine.distance import DISTANCES, cosine_distance, squared_distance, total_variation
from attacker.engine.draws import Draws
from attacker.engine.factored import FactoredProducts, why_not_factored
from attacker.engine.lbfgs import LBFGS
from attacker.engine.loop import LoopProducts
from attacker.engine.matched import Matched
from attacker.engine.objective import BottleneckNoise, GradientObjective, Objective
from attacker.engine.observed import group_observations, observed_gradient, why_not_one_step
from attacker.engine.priors import GroupConsistency, ImageNorm, Prior, TotalVariation
from attacker.engine.products import GradientProducts, Products, Replay
from attacker.engine.schedule import Schedule
from attacker.engine.starts import first_candidates
from attacker.engine.trace import LayerRun, Trace, trace

__all__ = [
    "DISTANCES",
    "LBFGS",
    "BatchStatistics",
    "BottleneckNoise",
    "DenseProducts",
    "Descent",
    "Draws",
    "FactoredProducts",
    "GradientObjective",
    "GradientProducts",
    "GroupConsistency",
    "ImageNorm",
    "LayerRun",
    "LoopProducts",
    "Matched",
    "Objective",
    "Prior",
    "Products",
    "Replay",
    "Schedule",
    "TotalVariation",
    "Trace",
    "candidates_at_once",
    "cosine_distance",
    "first_candidates",
    "gradient_products",
    "group_observations",
    "observed_gradient",
    "squared_distance",
    "total_variation",
    "trace",
    "why_no_batch_statistics",
    "why_not_factored",
    "why_not_one_step",
]
