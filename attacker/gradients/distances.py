"""Distances between gradients and priors on images, one value for each candidate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from attacker.gradients.base import Products


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


def relative_squared_distance(products: Products) -> Tensor:
    """|g - g*|^2 / |g*|^2, so that weights of priors mean what they mean beside a cosine, (victims, restarts)."""
    return squared_distance(products) / products.target.clamp_min(_tiny(products)).unsqueeze(1)


class Differences(Products):
    """Products of gradients that were formed element by element, with what inner products cannot tell.

    Attributes:
        absolute: (victims, restarts), sum |g - g*| over all elements.
        magnitude: (victims,), sum |g*|.
        agreement: (victims, restarts), sum g sign(g*) / sum |g|, 1 where all signs agree; None where not asked for.
    """

    absolute: Tensor
    magnitude: Tensor
    agreement: Tensor | None = None

    @classmethod
    def of(cls, products: Products, absolute: Tensor, magnitude: Tensor) -> Differences:
        """The products together with the sums of absolute values."""
        made = cls(*products)
        made.absolute, made.magnitude = absolute, magnitude
        return made


def absolute_distance(products: Products) -> Tensor:
    """The sum of |g - g*| over all parameters (Balunović et al., ICLR 2022), (victims, restarts).

    The likelihood of an update with Laplace noise.

    Raises:
        TypeError: If the products come from elsewhere than `attacker.gradients.elementwise.elementwise_differences`.
    """
    return _differences(products).absolute


def relative_absolute_distance(products: Products) -> Tensor:
    """The sum of |g - g*| over that of |g*|, (victims, restarts); raises as `absolute_distance`."""
    differences = _differences(products)
    return differences.absolute / differences.magnitude.clamp_min(_tiny(products)).unsqueeze(1)


def sign_distance(products: Products) -> Tensor:
    """1 - sum g sign(g*) / sum |g|, (victims, restarts): twice the share of g's magnitude whose sign is another.

    It is 0 wherever all signs agree, whatever the magnitudes, which an update of signs does not tell. A gradient of
    zeros has distance 1.

    Raises:
        TypeError: If the products were not asked for signs.
    """
    differences = _differences(products)
    if differences.agreement is None:
        raise TypeError("expected Differences of elements with signs=True, got some without their agreement")
    return 1 - differences.agreement


def _differences(products: Products) -> Differences:
    if not isinstance(products, Differences):
        raise TypeError(
            f"expected Differences, got {type(products).__name__}: a sum of absolute differences does not follow from "
            "inner products; measure it by elementwise_products"
        )
    return products


def _tiny(products: Products) -> float:
    return torch.finfo(products.square.dtype).tiny


DISTANCES: Mapping[str, Callable[[Products], Tensor]] = MappingProxyType(
    {
        "cosine": cosine_distance,
        "l2": squared_distance,
        "l1": absolute_distance,
        "l2-relative": relative_squared_distance,
        "l1-relative": relative_absolute_distance,
        "l1-direction": relative_absolute_distance,
        "signs": sign_distance,
        "cosine-kept": cosine_distance,
        "l2-kept": squared_distance,
        "l2-relative-kept": relative_squared_distance,
        "l1-relative-kept": relative_absolute_distance,
        "l1-direction-kept": relative_absolute_distance,
        "signs-kept": sign_distance,
    }
)
"""Distances by name. Those in `ELEMENTWISE` need products from gradients that are formed element by element."""


class Elements(NamedTuple):
    """How a distance looks at single elements of a gradient.

    Attributes:
        kept: Whether only elements count in which the observed gradient is not zero, those that a pruned update kept.
        formed: Whether factors do not give it, because absolute differences need the gradient itself.
        aligned: Whether a candidate's gradient is first given the norm of the observed one, whose scale is not known.
        signs: Whether the agreement of signs is asked for.
    """

    kept: bool = False
    formed: bool = False
    aligned: bool = False
    signs: bool = False


ELEMENTWISE: Mapping[str, Elements] = MappingProxyType(
    {
        "l1": Elements(formed=True),
        "l1-relative": Elements(formed=True),
        "l1-direction": Elements(formed=True, aligned=True),
        "signs": Elements(formed=True, signs=True),
        "cosine-kept": Elements(kept=True),
        "l2-kept": Elements(kept=True),
        "l2-relative-kept": Elements(kept=True),
        "l1-relative-kept": Elements(kept=True, formed=True),
        "l1-direction-kept": Elements(kept=True, formed=True, aligned=True),
        "signs-kept": Elements(kept=True, formed=True, signs=True),
    }
)
"""Distances that inner products over all parameters do not give, by name."""

SCALED = ("l2", "l1", "l2-relative", "l1-relative", "l2-kept", "l2-relative-kept", "l1-relative-kept")
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
