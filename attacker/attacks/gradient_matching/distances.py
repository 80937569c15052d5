"""Distances between gradients as parts of gradient matching, with the limits at which a search is done."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import ClassVar, Final, Literal

from torch import Tensor

from attacker.gradients.base import Products
from attacker.gradients.distances import DISTANCES, ELEMENTWISE, SCALED, Elements
from attacker.optim.setting_ranges import check_choice, check_flag, check_positive, check_weight

SCALES: Final = ("absolute", "relative", "direction")


@dataclass(frozen=True, kw_only=True)
class Distance(ABC):
    """How far a candidate's gradient is from the observed one.

    Attributes:
        kept: Whether only elements count that pruning kept, those in which the observed gradient is not zero.
        converged_below: Distance below which the outcome is "converged", positive; at most 2 for a cosine.
        stop_below: Distance below which a victim is done, at most ``converged_below``; 0 goes on.

    Raises:
        ValueError: If a setting is out of its range.
    """

    smooth: ClassVar[bool] = True
    """Whether it has no kinks, as an optimiser by line searches needs it."""

    kept: bool = False
    converged_below: float = 0.01
    stop_below: float = 0.0

    def __post_init__(self) -> None:
        check_weight("stop_below", self.stop_below)
        self._check_converged()
        if self.stop_below > self.converged_below:
            raise ValueError(
                f"stop_below={self.stop_below:g} would end attacks that do not count as converged; expected at most "
                f"converged_below={self.converged_below:g}"
            )

    def _check_converged(self) -> None:
        check_positive("converged_below", self.converged_below)

    @property
    @abstractmethod
    def _kind(self) -> str:
        """Name over all elements."""

    @property
    def name(self) -> str:
        """Name in `attacker.gradients.distances.DISTANCES`."""
        return f"{self._kind}-kept" if self.kept else self._kind

    @property
    def measure(self) -> Callable[[Products], Tensor]:
        """Makes distances of inner products."""
        return DISTANCES[self.name]

    @property
    def elements(self) -> Elements | None:
        """How it looks at single elements, or None where inner products over all parameters give it."""
        return ELEMENTWISE.get(self.name)

    @property
    def needs_scale(self) -> bool:
        """Whether it needs the gradient's scale, and not its direction alone."""
        return self.name in SCALED

    def residual(self, distance: float) -> float:
        """Share of the update's square that is left at a distance, or the distance where it is no cosine."""
        return distance

    def named(self, name: str) -> Distance:
        """Another distance with the same limits.

        Raises:
            ValueError: If there is none of that name, or the limits do not fit it.
        """
        return distance_named(name, converged_below=self.converged_below, stop_below=self.stop_below)


@dataclass(frozen=True, kw_only=True)
class Cosine(Distance):
    """``1 - cos(g, g*)`` (Geiping et al., NeurIPS 2020)."""

    def _check_converged(self) -> None:
        if not 0 < self.converged_below <= 2:
            raise ValueError(f"expected converged_below in (0, 2] for a cosine distance, got {self.converged_below!r}")

    @property
    def _kind(self) -> str:
        return "cosine"

    def residual(self, distance: float) -> float:
        """``sin^2`` of the angle, where it is acute."""
        return distance * (2 - distance) if distance < 1 else distance


@dataclass(frozen=True, kw_only=True)
class L2(Distance):
    """``|g - g*|^2`` (Zhu, Liu, Han, NeurIPS 2019), which needs the gradient's scale.

    Attributes:
        relative: Whether it is divided by ``|g*|^2``, so that weights of priors mean what they mean beside a cosine.
    """

    relative: bool = False

    def __post_init__(self) -> None:
        check_flag("relative", self.relative)
        super().__post_init__()

    @property
    def _kind(self) -> str:
        return "l2-relative" if self.relative else "l2"


@dataclass(frozen=True, kw_only=True)
class L1(Distance):
    """The sum of ``|g - g*|`` (Balunović et al., ICLR 2022).

    Attributes:
        scale: "absolute", or "relative" to the sum of ``|g*|``, both of which need the gradient's scale; or of the
            "direction" alone: relative, with the candidate's gradient at the norm of the observed one.
    """

    smooth: ClassVar[bool] = False

    scale: Literal["absolute", "relative", "direction"] = "absolute"

    def __post_init__(self) -> None:
        check_choice("scale", self.scale, SCALES)
        super().__post_init__()

    @property
    def _kind(self) -> str:
        return "l1" if self.scale == "absolute" else f"l1-{self.scale}"


@dataclass(frozen=True, kw_only=True)
class Signs(Distance):
    """Twice the share of the candidate's gradient, by magnitude, whose sign is not that of the observed one."""

    smooth: ClassVar[bool] = False

    @property
    def _kind(self) -> str:
        return "signs"


_DISTANCES: Mapping[str, Callable[..., Distance]] = MappingProxyType(
    {
        "cosine": Cosine,
        "l2": L2,
        "l2-relative": partial(L2, relative=True),
        "l1": L1,
        "l1-relative": partial(L1, scale="relative"),
        "l1-direction": partial(L1, scale="direction"),
        "signs": Signs,
    }
)


def distance_named(name: str, *, converged_below: float, stop_below: float) -> Distance:
    """The distance of a name in `attacker.gradients.distances.DISTANCES`.

    Raises:
        ValueError: If there is none; the message lists those that there are. If a limit is out of its range.

    >>> distance_named("l1-direction-kept", converged_below=0.1, stop_below=0.0)
    L1(kept=True, converged_below=0.1, stop_below=0.0, scale='direction')
    """
    check_choice("distance", name, tuple(DISTANCES))
    kind = name.removesuffix("-kept")
    return _DISTANCES[kind](kept=kind != name, converged_below=converged_below, stop_below=stop_below)
