"""Precision of a gradient, limited by the rounding of the client's arithmetic and of the numbers that are sent."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from attacker.gradients.observed import gradient_scale, observed_gradient, steps_behind
from fl_precode.observation import Observation

_ROUNDINGS: Final = 4
"""Of each term of a gradient, one after the other: score, share of the softmax, difference from the label, product."""

_OF_A_DIGIT: Final = 0.54 / 3
"""Variance of a number's relative rounding error, in squares of half the last digit of 1: errors of one size over
numbers whose leading digits are evenly spread on a logarithmic scale."""

_HALVES: Final = (torch.bfloat16, torch.float16)
"""The coarser first: most of its numbers are numbers of the other, too."""


def rounding_of(observation: Observation, name: str, images: int) -> float:
    """Norm of the error that rounding leaves in a parameter's observed gradient, by its standard deviation.

    A number that is rounded is wrong by up to half the distance of its neighbours, in either direction, all errors
    alike: their variance is a twelfth of the squared distance. The client rounds each term of the gradient
    `_ROUNDINGS` times, and once more with each doubling of the terms in a sum. What it sends is rounded once: the
    gradient itself, or the weights afterwards, once a step. Where all numbers are those of half precision, they were
    sent so, whatever they are kept in.

    Args:
        observation: The update.
        name: Name of the parameter.
        images: Terms of the gradient, 1 or more.
    """
    update, weight = observation.update[name], observation.parameters[name]
    digits = torch.finfo(weight.dtype).eps / 2 * ((_ROUNDINGS + math.log2(images)) * _OF_A_DIGIT) ** 0.5
    computed = digits * float(torch.linalg.vector_norm(observed_gradient(observation)[name].double()))
    sent = _squared_error(update.double(), update)
    if observation.kind == "weights":
        sent += (steps_behind(observation) or 1) * _squared_error(weight.double() + update.double(), update)
    return math.hypot(computed, abs(gradient_scale(observation)) * sent**0.5)


def _squared_error(values: Tensor, update: Tensor) -> float:
    """Sum of the variances of rounding errors; the values themselves are as exact as the update that they come from."""
    slack = torch.finfo(update.dtype).eps * torch.maximum(values.abs(), update.double().abs())
    kind = next((half for half in _HALVES if _all_are(values, half, slack)), update.dtype)
    limits = torch.finfo(kind)
    _, exponent = torch.frexp(values.abs().clamp_min(limits.smallest_normal))
    distance = limits.eps * torch.exp2(exponent.double() - 1)
    return float(distance.square().sum()) / 12


def _all_are(values: Tensor, kind: torch.dtype, slack: Tensor) -> bool:
    return bool(((values - values.to(kind).double()).abs() <= slack).all())
