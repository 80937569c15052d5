"""Priors on images as parts of gradient matching, each with its weight beside the distance."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Final

from attacker.attacks.gradient_matching.batch import Piece
from attacker.gradients.replay import Replay
from attacker.objectives import image_priors as priors
from attacker.objectives.bn_statistics_prior import BatchStatistics, why_no_batch_statistics
from attacker.objectives.returned_statistics import returned_prior, why_no_returned_statistics
from attacker.optim.setting_ranges import check_choice, check_weight
from attacker.reasons import Reason, because
from attacker.victim import Victim
from fl_precode.observation import Observation

STATISTICS: Final = ("running", "returned")
"""Of which statistics `BNStatistics` takes the distance."""


class Prior(ABC):
    """A penalty on candidates that is added to the distance with a weight.

    Attributes:
        weight: Beside the distance, 0 or more; 0 is no prior.
    """

    weight: float

    option: ClassVar[str]
    """Name of its weight in specs, and in messages."""
    no_line_search: ClassVar[str] = ""
    """Why an optimiser by line searches cannot have it; empty where it can."""
    couples_restarts: ClassVar[bool] = False
    """Whether it makes a victim's restarts depend on each other."""
    of_model: ClassVar[bool] = False
    """Whether it looks at what the model makes of images, and not at the images alone."""
    none: ClassVar[str] = "0"
    """The value of its option that does without."""

    @abstractmethod
    def on(self, piece: Piece) -> priors.Prior:
        """The penalty for what is attacked together."""

    def refuses(self, victim: Victim, observation: Observation) -> Reason | None:
        """Why it has nothing to compare with in an update, or None when it has."""
        del victim, observation
        return None


@dataclass(frozen=True)
class _Weighted(Prior):
    weight: float

    def __post_init__(self) -> None:
        check_weight(self.option, self.weight)


@dataclass(frozen=True)
class TotalVariation(_Weighted):
    """Anisotropic total variation, mean |dh| + mean |dv| (Geiping et al., NeurIPS 2020).

    Attributes:
        weight: 0 or more.
    """

    option: ClassVar[str] = "total_variation"
    no_line_search: ClassVar[str] = "total variation has kinks, and it needs a smooth loss"

    def on(self, piece: Piece) -> priors.Prior:
        """The same for all."""
        del piece
        return priors.TotalVariation()


@dataclass(frozen=True)
class RacedTotalVariation(Prior):
    """Total variation whose weight is raced for each update (`attacker.attacks.gradient_matching.race`).

    Attributes:
        weights: Two or more different ones, 0 or more.
        weight: The middle one, for a search that does not race.
        text: The weights as a spec has them, by which results name them.

    Raises:
        ValueError: If there are fewer weights, or one is out of its range.
    """

    option: ClassVar[str] = "total_variations"
    no_line_search: ClassVar[str] = TotalVariation.no_line_search
    none: ClassVar[str] = ""

    weights: tuple[float, ...]
    weight: float = field(init=False, repr=False, compare=False)
    text: str = field(default="", compare=False, kw_only=True)

    def __post_init__(self) -> None:
        weights = tuple(self.weights)
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "weight", sorted(weights)[len(weights) // 2] if weights else 0.0)
        if not self.text:
            object.__setattr__(self, "text", "|".join(f"{weight:g}" for weight in weights))
        valid = all(0 <= weight < float("inf") for weight in weights)
        if not valid or len(weights) < 2 or len(set(weights)) < len(weights):
            raise ValueError(
                "expected total_variations to be two or more different weights of 0 or more, separated by |, such as "
                f"1e-6|1e-4|1e-2|1e-1, got {self.text!r}"
            )

    def on(self, piece: Piece) -> priors.Prior:
        """As `TotalVariation`."""
        return TotalVariation(self.weight).on(piece)


@dataclass(frozen=True)
class ImageNorm(_Weighted):
    """Mean square of the pixels in the normalised scale (Yin et al., CVPR 2021).

    Attributes:
        weight: 0 or more.
    """

    option: ClassVar[str] = "image_norm"

    def on(self, piece: Piece) -> priors.Prior:
        """The same for all."""
        del piece
        return priors.ImageNorm()


@dataclass(frozen=True)
class GroupConsistency(_Weighted):
    """Mean squared difference to the consensus of the victim's restarts (Yin et al., CVPR 2021).

    Attributes:
        weight: 0 or more.
        registered: Whether the consensus is the mean after shifting each restart to fit, and not the plain mean.
    """

    option: ClassVar[str] = "group_consistency"
    no_line_search: ClassVar[str] = "the consensus moves, and a line search must see the same loss when it looks twice"
    couples_restarts: ClassVar[bool] = True

    registered: bool = field(default=False, kw_only=True)

    def on(self, piece: Piece) -> priors.Prior:
        """The same for all."""
        del piece
        return priors.GroupConsistency(registered=self.registered)


@dataclass(frozen=True)
class BNStatistics(_Weighted):
    """Distance to statistics of what enters BatchNorm layers (Yin et al., CVPR 2021).

    Attributes:
        weight: 0 or more.
        of: "running" for the running ones that were sent, a rough guess; "returned" for those of the client's own
            batch, which follow from the returned buffers (`ReturnedStatistics`, another scale).

    Raises:
        ValueError: If there are no such statistics.
    """

    option: ClassVar[str] = "batch_norm"
    no_line_search: ClassVar[str] = (
        "the norms of this prior have a kink where statistics agree, and it needs a smooth loss"
    )
    of_model: ClassVar[bool] = True

    of: str = field(default="running", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("batch_norm_of", self.of, STATISTICS)

    def on(self, piece: Piece) -> priors.Prior:
        """With the statistics that were sent to each victim, or that each sent back."""
        if self.of == "returned":
            return returned_prior(piece.known, piece.sent, latents=piece.seen.latents)
        first = piece.sent[0]
        shared = Replay(piece.known, first.parameters, first.buffers)
        replays = [
            shared if other.parameters is first.parameters else Replay(piece.known, other.parameters, other.buffers)
            for other in piece.sent
        ]
        return BatchStatistics(replays, latents=piece.seen.latents)

    def refuses(self, victim: Victim, observation: Observation) -> Reason | None:
        """Models without such layers, and updates without their statistics."""
        if self.of == "returned":
            why = why_no_returned_statistics(victim, observation) if self.weight else None
            return why and because("statistics-needed", option="batch_norm_of=returned", why=why)
        reason = why_no_batch_statistics(victim.model, observation.buffers)
        if reason is None or not self.weight:
            return None
        return because("prior-has-no-reference", weight=self.weight, why=reason)
