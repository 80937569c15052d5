"""Side information of an adaptive attack, and its handling of unknown noise."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SideInformation:
    """What is known of one update.

    Attributes:
        matched: Parameters that count in the distance; None for all that the settings choose.
        noise: (batch, ...) that each random layer drew, in order of execution, None where it is not known; empty when
            none is known.
        features: Layer name to (batch, features), what entered it for the client's images.
        units: Parameter name to the standard deviation of what the defence added to its numbers, relative to that of
            the others, by which both gradients are divided; empty where it is the same for all.
    """

    matched: frozenset[str] | None = None
    noise: tuple[Tensor | None, ...] = ()
    features: Mapping[str, Tensor] = field(default_factory=dict)
    units: Mapping[str, float] = field(default_factory=dict)

    @property
    def kind(self) -> Hashable:
        """Equal for updates that can be attacked together."""
        return (
            self.matched,
            tuple(layer_noise is None for layer_noise in self.noise),
            tuple(self.features),
            bool(self.units),
        )


@dataclass(frozen=True, kw_only=True)
class NoiseSearch:
    """How gradient matching treats noise that is not known, and features that are.

    Attributes:
        draws: Fresh draws that each distance is the mean over, 1 or more.
        rate: Adam's step for noise that is optimised with the images; 0 draws it instead.
        mask_penalty: Weight of the squared difference between the share that a dropout mask drops and the share
            that the layer drops on average, 0 or more.
        feature_weight: Weight of the known features, 0 or more.

    Raises:
        ValueError: If a setting is out of its range.
    """

    draws: int = 1
    rate: float = 0.0
    mask_penalty: float = 0.0
    feature_weight: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.draws, int) or isinstance(self.draws, bool) or self.draws < 1:
            raise ValueError(f"expected draws to be a whole number of 1 or more, got {self.draws!r}")
        for name in ("rate", "mask_penalty", "feature_weight"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"expected a finite {name} of 0 or more, got {value!r}")


PLAIN = NoiseSearch()
"""One fresh draw at each step, as attacks that ignore the defence do it."""
