"""Counts of exactly determined parts of a gradient: patches by their positions, and images by two stacked layers.

Ranks of J (`attacker.leakage.spectrum`) say what the whole gradient determines of an image, whoever finds it. These
counts say where one linear system, or one search that always ends, finds it: for images of any size, and for batches.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from attacker.analytic.first_linear import PROBES, first_linear
from attacker.analytic.patches.patch_layer import patch_layer
from attacker.analytic.patches.positions import position_embedding
from attacker.analytic.patches.token_equations import solve_patches
from attacker.analytic.spans.signal_rank import above_noise
from attacker.analytic.spans.stacked_layers import StackedLayers, stacked_layers
from attacker.analytic.spans.token_batch import perceptron_of_block
from attacker.gradients.trace import Trace, trace
from attacker.leakage.record import PositionRank, SpanRank
from attacker.leakage.released import Released
from attacker.reasons import Reason
from attacker.victim import Victim

_LEAST_UNITS: Final = 2
"""Hidden units for each vector: what two spaces have in common is then the vectors alone."""


def position_rank(of: Released, pixels: Tensor) -> PositionRank | None:
    """Patches that the gradient of positions determines, or None where a model has no such positions.

    Args:
        of: The gradient as a function of the image.
        pixels: (1, channels, height, width) in [0, 1].
    """
    victim = of.replay.victim
    layer = patch_layer(victim, trace(victim, batch_size=1))
    positions = layer if isinstance(layer, Reason) else position_embedding(victim, layer)
    if isinstance(layer, Reason) or isinstance(positions, Reason):
        return None
    if not {layer.weight, positions.name} <= {*of.matched}:
        return None
    gradient = of.restricted({layer.weight, positions.name}).gradient(pixels)
    weight = gradient[layer.weight].reshape(layer.width, -1)
    solved = solve_patches(positions.token_gradients(gradient), weight) if bool(weight.any()) else None
    return PositionRank(
        positions=positions.name,
        layer=layer.name,
        patches=len(layer.pixels),
        width=layer.width,
        rank=0 if solved is None else solved.rank,
    )


def span_ranks(of: Released, pixels: Tensor) -> tuple[SpanRank, ...]:
    """Pairs of layers that take batches apart: the first two of a model, and those of a transformer's first block.

    Args:
        of: The gradient as a function of the image.
        pixels: (1, channels, height, width) in [0, 1].
    """
    victim = of.replay.victim
    model_trace = trace(victim, batch_size=PROBES)
    pairs = ((False, _of_images(victim, model_trace)), (True, perceptron_of_block(victim, model_trace)))
    found = (_span_rank(of, pixels, pair, tokens=tokens) for tokens, pair in pairs if isinstance(pair, StackedLayers))
    return tuple(one for one in found if one is not None)


def _of_images(victim: Victim, model_trace: Trace) -> StackedLayers | Reason:
    layer = first_linear(model_trace)
    return layer if isinstance(layer, Reason) else stacked_layers(victim, model_trace, layer.module)


def _span_rank(of: Released, pixels: Tensor, pair: StackedLayers, *, tokens: bool) -> SpanRank | None:
    name, bias = (pair.parameter(pair.first, own) for own in ("weight", "bias"))
    if pair.kind == "ReLU" or not {name, bias} <= {*of.matched}:
        return None
    behind = of.replay.parameters[pair.parameter(pair.second, "weight")]
    units, entered = of.replay.parameters[name].shape
    each = _vectors(of, pixels, pair.first)
    # Gradients behind the second layer lack one direction: later LayerNorms see no mean, class scores sum to zero.
    most = min(entered, len(behind) - 1, units // _LEAST_UNITS)
    gradient = of.restricted({name, bias}).gradient(pixels)
    matrix = torch.cat([gradient[name], gradient[bias][:, None]], dim=1)
    factors = above_noise(matrix, each, name=name, expected=each)
    return SpanRank(
        first=pair.first,
        second=pair.second,
        activation=pair.kind,
        tokens=tokens,
        each=each,
        most=most,
        rank=0 if isinstance(factors, Reason) else min(factors.rank, each),
    )


def _vectors(of: Released, pixels: Tensor, layer: str) -> int:
    """How many vectors enter a layer for one image."""
    counts: list[int] = []
    module = of.replay.victim.model.get_submodule(layer)
    handle = module.register_forward_pre_hook(
        lambda own, arguments: counts.append(arguments[0].numel() // own.in_features)
    )
    try:
        with torch.no_grad():
            of.loss({}, pixels, of.noise)
    finally:
        handle.remove()
    return counts[0]
