"""Input of a fully connected layer from its gradient (single image), where the chain is entered."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from scipy.optimize import brentq, minimize_scalar
from torch import Tensor

_SCALES = 400


class ClassifierInput(NamedTuple):
    """Input of a fully connected layer and the loss's gradient there; one image.

    Attributes:
        features: (in_features,).
        gradient: (in_features,), of the loss with respect to ``features``.
        delta: (out_features,), of the loss with respect to the layer's output.
    """

    features: Tensor
    gradient: Tensor
    delta: Tensor


def enter(weight: Tensor, weight_gradient: Tensor, bias_gradient: Tensor) -> ClassifierInput:
    """By the bias gradient d, whatever comes behind the layer: ``dW = d h'``, hence ``h = dW' d / |d|^2``.

    The least-squares combination of all rows' quotients; ``dL/dh = W' d``.

    Args:
        weight: (out_features, in_features), as is its gradient.
        weight_gradient: Weight gradient of one image.
        bias_gradient: (out_features,), not zero everywhere.
    """
    features = weight_gradient.T @ bias_gradient / bias_gradient.square().sum()
    return ClassifierInput(features, weight.T @ bias_gradient, bias_gradient)


def enter_without_bias(
    weight: Tensor, weight_gradient: Tensor, constant: Tensor | None = None
) -> tuple[int, list[ClassifierInput]]:
    """For a classifier without bias under softmax cross-entropy: label, and entries, the likeliest first.

    ``dW = d h'`` with ``d = softmax(W h + b) - onehot(y)`` leaves one number open, the length t of h. Its direction is
    the first singular vector, its sign is such that one entry of d is negative, the label's: rows of the others have
    positive inner products with each other and negative ones with it. t solves ``t (1 - p_y(t)) = sigma |d_y|``, which
    may have several roots for a well classified image; they are ordered by how well all of d agrees.

    Args:
        weight: (classes, in_features), of the classifier.
        weight_gradient: Weight gradient of one image, not zero everywhere.
        constant: (classes,), a bias b whose gradient is not known; None for no bias.

    Returns:
        The label and one entry for each root; none when no length explains the gradient.
    """
    left, values, right = torch.linalg.svd(weight_gradient, full_matrices=False)
    direction, sigma, delta = right[0], float(values[0]), left[:, 0]
    # One entry of d is negative and outweighs each other: d sums to zero.
    if float(delta[delta.abs().argmax()]) > 0:
        direction, delta = -direction, -delta
    label = int(delta.argmin())
    reach, share = weight @ direction, -float(delta[label])
    shift = torch.zeros_like(reach) if constant is None else constant

    def surplus(log_length: float) -> float:
        length = math.exp(log_length)
        return length * float(-torch.expm1(torch.log_softmax(length * reach + shift, dim=0)[label])) - sigma * share

    # 1 - p_y lies between 0 and 1: no root below sigma |d_y|.
    least = math.log(max(sigma * share, 1e-300))
    lengths = [math.exp(root) for root in _roots(surplus, least - 1e-3, least - 1e-3 + 16)]
    entries = []
    for length in lengths:
        d = torch.softmax(length * reach + shift, dim=0)
        d[label] -= 1
        entries.append(
            (float((d * length / sigma - delta).norm()), ClassifierInput(length * direction, weight.T @ d, d))
        )
    return label, [entry for _, entry in sorted(entries, key=lambda pair: pair[0])]


def _roots(function: Callable[[float], float], low: float, high: float) -> list[float]:
    """Roots between two ends, two that lie close together included: extrema between grid points are looked for."""
    step = (high - low) / _SCALES
    grid = [low + step * place for place in range(_SCALES + 1)]
    values = [function(point) for point in grid]
    turns = []
    for place in range(1, _SCALES):
        before, here, after = values[place - 1 : place + 2]
        sign = -1.0 if here < 0 else 1.0
        if sign * here <= min(sign * before, sign * after):  # nearest to zero between its neighbours, on one side of it
            best = minimize_scalar(
                lambda x, sign=sign: sign * function(x), bounds=(grid[place - 1], grid[place + 1]), method="bounded",
                options={"xatol": 1e-12},
            )  # fmt: skip
            turns.append(float(best.x))
    grid = sorted([*grid, *turns])
    values = [function(point) for point in grid]
    return [
        float(brentq(function, left, right, xtol=1e-15, rtol=1e-15))
        for left, right, before, after in zip(grid, grid[1:], values, values[1:], strict=False)
        if (before < 0) != (after < 0)
    ]


def one_logit_margins(inner: float) -> list[float]:
    """Margins u = y f of a model with one logit f, from ``<dV, V>`` of its last layer V, which has no bias.

    With the logistic loss ``log(1 + exp(-u))`` it is ``f dl/df = -u / (1 + exp(u))`` (R-GAP, Zhu, Blaschko, ICLR 2021).
    A misclassified image has one root u < 0; for others there are two, u below and above 1.278, where the function has
    its minimum of -0.2785; none when the value is below that.

    Args:
        inner: Inner product of the leaked gradient of V with V.

    >>> [round(u, 6) for u in one_logit_margins(-0.5 / (1 + 2.718281828459045 ** 0.5))]
    [0.5, 2.508807]
    >>> one_logit_margins(-0.3)
    []
    """

    def surplus(u: float) -> float:
        return float(-u * torch.sigmoid(torch.tensor(-u, dtype=torch.float64))) - inner

    if inner == 0:
        return [0.0]
    if inner > 0:  # -u / (1 + exp(u)) is at least -u / 2 for u < 0
        return [float(brentq(surplus, -2 * inner - 1, 0.0, xtol=1e-15))]
    lowest = 1.2784645427610738
    if surplus(lowest) > 0:
        return []
    return [float(brentq(surplus, 0.0, lowest, xtol=1e-15)), float(brentq(surplus, lowest, 800.0, xtol=1e-13))]


def enter_one_logit(weight: Tensor, weight_gradient: Tensor, label: int) -> list[ClassifierInput]:
    """Entries for the layer V of a single logit without bias, one for each margin of `one_logit_margins`.

    Args:
        weight: (1, in_features), as is its gradient.
        weight_gradient: Weight gradient of one image under the logistic loss.
        label: y, -1 or 1. The gradient tells ``y dl/df < 0`` only: with the wrong label, features change their sign.
    """
    entries = []
    for margin in one_logit_margins(float((weight * weight_gradient).sum())):
        slope = -label * torch.sigmoid(torch.tensor(-margin, dtype=weight.dtype))
        entries.append(ClassifierInput(weight_gradient[0] / slope, weight[0] * slope, slope.reshape(1)))
    return entries
