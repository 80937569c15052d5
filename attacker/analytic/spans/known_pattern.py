"""Images behind a ReLU of which is known where they are on: then both spaces are linear, and one solve gives each."""

from __future__ import annotations

import torch
from torch import Tensor

from attacker.analytic.spans.deflation import BackwardPass, Deflation
from attacker.analytic.spans.two_spans import TwoLayers

AGREES = 0.02
"""Largest disagreement of the two gradients about an image that counts as found."""

_ON = 0.98
"""Share of the pattern that the image has to show itself."""


def images_of_patterns(layers: TwoLayers, active: Tensor) -> tuple[Tensor, list[BackwardPass]]:
    """The image of each pattern of active units, of those that both gradients confirm.

    With its units known an image is the solution of ``(I - P) D (W x + b) = 0``, x in the first gradient's row space,
    D the active units and P the projector on the second's row space: no other image has to be known for it.

    Args:
        layers: The two layers with a ReLU between them.
        active: (patterns, units), whether the unit is on.

    Returns:
        (found, features) inputs of the first layer, and what each sent back.
    """
    inside, target = layers.first.right, layers.second.right
    deflation = Deflation(layers)
    inputs, backward = [], []
    for pattern in active:
        values = layers.with_ones((layers.weight @ inside.T * pattern[:, None].to(inside)).T)  # (k, units [+ 1])
        if layers.second_bias:
            values = torch.cat([values[:, :-1], inside[:, -1:]], dim=1)  # the image's own one
        outside = values - (values @ target.T) @ target
        direction = torch.linalg.svd(outside.T, full_matrices=False).Vh[-1] @ inside
        if abs(float(direction[-1])) < 1e-12:
            continue
        point = direction / direction[-1]
        shows = ((layers.weight @ point > 0) == pattern).double().mean()
        found = deflation.backward(point)
        if float(shows) >= _ON and found.misfit < AGREES:
            inputs.append(point[:-1])
            backward.append(found)
    features = layers.weight.shape[1] - 1
    return (torch.stack(inputs) if inputs else layers.weight.new_zeros(0, features)), backward
