"""Scales of the comparison of influence with measured errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class InfluenceScale:
    """Sizes of the comparison.

    Attributes:
        name: As on the command line.
        data: Image sets unless others are named. The first is used for everything, the others for the noise only.
        stds: Standard deviations of Gaussian noise on the gradient of LeNet with weights from U(-0.5, 0.5).
        images: The first training images of the first set.
        others: The first training images of the other sets.
        shares: Shares of pruning.
        random_iterations: Iterations of L-BFGS from random pixels, at noise of 0.001.
        random_images: The first training images.
        few: Images for pruning, initialisations and models.
        models: Other models, exact.
        large: Other models, by products: bounds and damped estimates.
        iterations: Iterations of L-BFGS from the truth.
    """

    name: str
    data: tuple[str, ...]
    stds: tuple[float, ...]
    images: int
    others: int
    shares: tuple[float, ...]
    random_iterations: int
    random_images: int
    few: int
    models: tuple[str, ...]
    large: tuple[str, ...]
    iterations: int = 300


INFLUENCE_SCALES: Mapping[str, InfluenceScale] = MappingProxyType(
    {
        "smoke": InfluenceScale(
            name="smoke", data=("digits", "photos"), stds=(1e-4, 1e-3, 1e-2), images=12, others=1,
            shares=(0.1, 0.5, 0.9), random_iterations=300, random_images=5, few=2,
            models=("lenet:activation=relu",), large=("resnet20",), iterations=100,
        ),
        "small": InfluenceScale(
            name="small", data=("cifar10", "digits"), stds=(1e-5, 1e-4, 1e-3, 1e-2), images=32, others=32,
            shares=(0.1, 0.3, 0.5, 0.7, 0.9), random_iterations=3_000, random_images=8, few=4,
            models=("lenet:activation=relu",), large=("resnet20", "resnet18"),
        ),
        "paper": InfluenceScale(
            name="paper", data=("cifar10", "digits"), stds=(1e-5, 1e-4, 1e-3, 1e-2), images=256, others=256,
            shares=(0.1, 0.3, 0.5, 0.7, 0.9, 0.99), random_iterations=10_000, random_images=64, few=20,
            models=("lenet:activation=relu", "lenet:activation=tanh"), large=("convnet", "resnet20", "resnet18"),
        ),
    }
)  # fmt: skip
"""Scales by name."""
