"""Distances between gradients and priors on images, one value for each candidate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from attacker.engine.products import Products


def cosine_distance(products: Products) -> Tensor:
    """1 - cos(g, g*) over all parameters concatenated (Geiping et al., NeurIPS 2020, eq. 4), (victims, restarts).

    A gradient of zeros has distance 1 and passes no gradient on, instead of NaN.
    """
    tiny = torch.finfo(products.square.dtype).tiny
    scale = products.square.clamp_min(tiny).rsqrt() * products.target.clamp_min(tiny).rsqrt().unsqueeze(1)
    return 1 - products.inner * scale


def squared_distance(products: Products) -> Tensor:
    """|g - g*|^2 over all parameters (Zhu, Liu, Han, NeurIPS 2019, eq. 4), (victims, restarts).

    Near the solution it is the difference of large numbers, which float64 products keep to about 1e-16 of |g*|^2;
    rounding may end just below zero.
    """
    return products.square - 2 * products.inner + products.target.unsqueeze(1)


class Differences(Products):
    """Products of gradients that were formed element by element, with what inner products cannot tell.

    Attributes:
        absolute: (victims, restarts), sum |g - g*| over all elements.
    """

    absolute: Tensor

    @classmethod
    def of(cls, products: Products, absolute: Tensor) -> Differences:
        """The products together with the sums of absolute differences."""
        made = cls(*products)
        made.absolute = absolute
        return made


def absolute_distance(products: Products) -> Tensor:
    """The sum of |g - g*| over all parameters (Balunović et al., ICLR 2022), (victims, restarts).

    The likelihood of an update with Laplace noise.

    Raises:
        TypeError: If the products come from elsewhere than `attacker.engine.elementwise.ElementwiseProducts`.
    """
    if not isinstance(products, Differences):
        raise TypeError(
            f"expected Differences, got {type(products).__name__}: a sum of absolute differences does not follow from "
            "inner products; measure it by elementwise_products"
        )
    return products.absolute


DISTANCES: Mapping[str, Callable[[Products], Tensor]] = MappingProxyType(
    {
        "cosine": cosine_distance,
        "l2": squared_distance,
        "l1": absolute_distance,
        "cosine-kept": cosine_distance,
        "l2-kept": squared_distance,
    }
)
"""Distances by name. Those in `ELEMENTWISE` need products from gradients that are formed element by element."""

ELEMENTWISE: Mapping[str, bool] = MappingProxyType({"l1": False, "cosine-kept": True, "l2-kept": True})
"""Distances that inner products over all parameters do not give, by name: whether only elements count in which the
observed gradient is not zero, those that a pruned update kept."""

SCALED = ("l2", "l1", "l2-kept")
"""Distances that need the gradient's scale, and not its direction alone."""


def total_variation(images: Tensor) -> Tensor:
    """Anisotropic total variation, mean |dh| + mean |dv|, of each candidate.

    The means are over the batch, the channels and all neighbouring pairs, as in the reference code of Inverting
    Gradients; weights of other normalisations differ by the number of pixels. One pixel of width or height adds 0.

    Args:
        images: (..., batch, channels, height, width), any number of channels.

    Returns:
        Shape (...): one value for each leading index.
    """
    total = images.new_zeros(images.shape[:-4])
    for dim in (-1, -2):
        if images.shape[dim] > 1:
            total = total + images.diff(dim=dim).abs().mean(dim=(-4, -3, -2, -1))
    return total
