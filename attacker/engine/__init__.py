"""Batched gradient matching. Candidates carry the axes (victims, restarts, batch, channels, height, width)."""

from attacker.engine.attention import AttentionKind
from attacker.engine.batch_statistics import BatchStatistics, why_no_batch_statistics
from attacker.engine.convolutions import ConvolutionKind
from attacker.engine.descent import Companions, Descent, SoftSign
from attacker.engine.distance import (
    DISTANCES,
    ELEMENTWISE,
    SCALED,
    absolute_distance,
    cosine_distance,
    squared_distance,
    total_variation,
)
from attacker.engine.draws import Draws
from attacker.engine.elementwise import elementwise_differences
from attacker.engine.factored import FactoredProducts, why_not_factored
from attacker.engine.features import FeatureTarget
from attacker.engine.layer_kinds import (
    CompositeKind,
    LayerKind,
    LayerProducts,
    LayerShare,
    LinearPart,
    ObservedLayer,
    register_layer,
)
from attacker.engine.layers import LinearKind
from attacker.engine.lbfgs import LBFGS
from attacker.engine.local_training import (
    LocalTraining,
    LocalTrainingProducts,
    local_training_products,
    why_not_unrolled,
)
from attacker.engine.loop import LoopProducts
from attacker.engine.matched import Matched
from attacker.engine.norms import NormKind
from attacker.engine.objective import BottleneckNoise, GradientObjective
from attacker.engine.observed import (
    group_observations,
    observed_gradient,
    same_weights,
    steps_behind,
    why_not_one_step,
    why_scale_unknown,
)
from attacker.engine.one_step import (
    DenseProducts,
    ElementwiseProducts,
    elementwise_products,
    gradient_products,
    weights_pay,
)
from attacker.engine.priors import GroupConsistency, ImageNorm, Prior, TotalVariation
from attacker.engine.problem import Objective
from attacker.engine.products import GradientProducts, Products
from attacker.engine.replay import Replay
from attacker.engine.schedule import Schedule
from attacker.engine.starts import Grey, Normal, Patterned, Start, Uniform, start_named
from attacker.engine.surrogate import SurrogateProducts, surrogate_products
from attacker.engine.trace import LayerRun, Trace, trace

__all__ = [
    "DISTANCES",
    "ELEMENTWISE",
    "LBFGS",
    "AttentionKind",
    "BatchStatistics",
    "BottleneckNoise",
    "Companions",
    "CompositeKind",
    "ConvolutionKind",
    "FeatureTarget",
    "SCALED",
    "DenseProducts",
    "Descent",
    "Draws",
    "ElementwiseProducts",
    "FactoredProducts",
    "GradientObjective",
    "GradientProducts",
    "Grey",
    "GroupConsistency",
    "ImageNorm",
    "LayerKind",
    "LayerProducts",
    "LayerRun",
    "LayerShare",
    "LinearKind",
    "LinearPart",
    "LocalTraining",
    "LocalTrainingProducts",
    "LoopProducts",
    "Matched",
    "NormKind",
    "Normal",
    "Objective",
    "ObservedLayer",
    "Patterned",
    "Prior",
    "Products",
    "Replay",
    "Schedule",
    "SoftSign",
    "Start",
    "TotalVariation",
    "SurrogateProducts",
    "Trace",
    "Uniform",
    "absolute_distance",
    "cosine_distance",
    "elementwise_differences",
    "elementwise_products",
    "gradient_products",
    "group_observations",
    "local_training_products",
    "observed_gradient",
    "register_layer",
    "same_weights",
    "squared_distance",
    "start_named",
    "steps_behind",
    "surrogate_products",
    "total_variation",
    "trace",
    "weights_pay",
    "why_no_batch_statistics",
    "why_not_factored",
    "why_not_one_step",
    "why_not_unrolled",
    "why_scale_unknown",
]
