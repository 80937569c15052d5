"""Batched gradient matching. Candidates carry the axes (victims, restarts, batch, channels, height, width)."""

from attacker.engine.choose import candidates_at_once, gradient_products
from attacker.engine.dense import DenseProducts
from attacker.engine.descent import Descent, Matched
from attacker.engine.distance import DISTANCES, cosine_distance, squared_distance, total_variation
from attacker.engine.draws import Draws
from attacker.engine.factored import FactoredProducts, why_not_factored
from attacker.engine.lbfgs import LBFGS
from attacker.engine.loop import LoopProducts
from attacker.engine.observed import group_observations, observed_gradient, why_not_one_step
from attacker.engine.products import GradientProducts, Products, Replay
from attacker.engine.trace import LayerRun, Trace, trace

__all__ = [
    "DISTANCES",
    "LBFGS",
    "DenseProducts",
    "Descent",
    "Draws",
    "FactoredProducts",
    "GradientProducts",
    "LayerRun",
    "LoopProducts",
    "Matched",
    "Products",
    "Replay",
    "Trace",
    "candidates_at_once",
    "cosine_distance",
    "gradient_products",
    "group_observations",
    "observed_gradient",
    "squared_distance",
    "total_variation",
    "trace",
    "why_not_factored",
    "why_not_one_step",
]
