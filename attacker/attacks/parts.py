"""The parts that gradient matching is composed of: small frozen objects, each of which checks itself.

A distance between gradients, an optimiser, priors on the images, and restarts; where a search starts is one of the
starts of `attacker.engine`. A setting that makes sense with one part only belongs to this part. The few demands of an
optimiser on the parts beside it are checked by `Optimiser.check_beside`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from types import MappingProxyType
from typing import ClassVar, Final, Literal, Self

from torch import Tensor

from attacker.attacks.piece import Piece
from attacker.engine import (
    DISTANCES,
    ELEMENTWISE,
    SCALED,
    BatchStatistics,
    Companions,
    Descent,
    Draws,
    Matched,
    Objective,
    Products,
    Replay,
    SoftSign,
    priors,
    why_no_batch_statistics,
)
from attacker.engine import LBFGS as LineSearches
from attacker.engine.distance import Elements
from attacker.engine.ranges import check_choice, check_flag, check_positive, check_weight, check_whole
from attacker.engine.schedule import SHAPES
from attacker.victim import Victim
from fl_precode.observation import Observation

PieceProgress = Callable[[float, float | None], None]

ITERATES: Final = ("best", "last")
SCALES: Final = ("absolute", "relative", "direction")


# Distances ----------------------------------------------------------------------------------------------------------


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
        """Name in `attacker.engine.DISTANCES`."""
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
    """The distance of a name in `attacker.engine.DISTANCES`.

    Raises:
        ValueError: If there is none; the message lists those that there are. If a limit is out of its range.

    >>> distance_named("l1-direction-kept", converged_below=0.1, stop_below=0.0)
    L1(kept=True, converged_below=0.1, stop_below=0.0, scale='direction')
    """
    check_choice("distance", name, tuple(DISTANCES))
    kind = name.removesuffix("-kept")
    return _DISTANCES[kind](kept=kind != name, converged_below=converged_below, stop_below=stop_below)


# Priors -------------------------------------------------------------------------------------------------------------


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

    def refuses(self, victim: Victim, observation: Observation) -> str | None:
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
    """Total variation whose weight is raced for each update (`attacker.attacks.race`).

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
    """Distance to the running statistics of BatchNorm layers (Yin et al., CVPR 2021).

    Attributes:
        weight: 0 or more.
    """

    option: ClassVar[str] = "batch_norm"
    no_line_search: ClassVar[str] = (
        "the norms of this prior have a kink where statistics agree, and it needs a smooth loss"
    )
    of_model: ClassVar[bool] = True

    def on(self, piece: Piece) -> priors.Prior:
        """With the statistics that were sent to each victim."""
        one = piece.sent[0]
        shared = Replay(piece.known, one.parameters, one.buffers)
        replays = [
            shared if other.parameters is one.parameters else Replay(piece.known, other.parameters, other.buffers)
            for other in piece.sent
        ]
        return BatchStatistics(replays, latents=piece.seen.latents)

    def refuses(self, victim: Victim, observation: Observation) -> str | None:
        """Models without such layers, and updates without their statistics."""
        reason = why_no_batch_statistics(victim.model, observation.buffers)
        if reason is None or not self.weight:
            return None
        return f"batch_norm={self.weight:g} has nothing to compare with: {reason}; batch_norm=0 does without"


# Restarts and replays -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Restarts:
    """Starts for each observation, the best of which counts.

    Attributes:
        count: 1 or more; independent unless `GroupConsistency` couples them.
        halving: How often the worse half of them is dropped on the way; needs 2**halving of them.

    Raises:
        ValueError: If there are too few to be halved so often.
    """

    count: int = 1
    halving: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        check_whole("restarts", self.count, least=1)
        check_whole("halving", self.halving, least=0)
        if self.halving and self.count < 2**self.halving:
            raise ValueError(
                f"halving={self.halving} leaves one of {2**self.halving} restarts; "
                f"expected at least so many, got restarts={self.count}"
            )


class ReplayMode(StrEnum):
    """How weights after several local steps are replayed.

    ``UNROLLED`` replays SGD steps (the protocol must announce steps or epochs, images of a step and learning rate),
    ``SURROGATE`` takes one gradient at weights between those sent and received, ``ONE_GRADIENT`` one gradient of all
    images at the weights sent. ``AUTO`` takes one gradient for one step, unrolls up to 16 steps where enough is
    announced, and takes the surrogate otherwise.
    """

    AUTO = "auto"
    ONE_GRADIENT = "one-gradient"
    UNROLLED = "unrolled"
    SURROGATE = "surrogate"


# Optimisers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What an optimiser works on.

    Attributes:
        objective: What to minimise.
        start: First candidates, (victims, restarts, ...).
        draws: Generators of all candidates.
        project: Moves candidates within their bounds; None without any.
        companions: Entries of candidates that are no part of the images.
        stop_below: Distance below which a victim is done; 0 for none.
        halving: How often the worse half of a victim's restarts is dropped.
    """

    objective: Objective
    start: Tensor
    draws: Draws
    project: Callable[[Tensor], Tensor] | None = None
    companions: Companions | None = None
    stop_below: float = 0.0
    halving: int = 0


class Optimiser(ABC):
    """A search for candidates with a small loss.

    Attributes:
        iterations: Evaluations of all candidates, 1 or more.
        plateau: Iterations without a gain of 1 % after which a candidate is done; 0 waits for ever.
    """

    iterations: int
    plateau: int

    boxed: bool = False
    """Whether images are clamped to valid ones after every step."""
    joint_labels: bool = False
    """Whether labels that were not granted are optimised with the images."""
    measures_twice: ClassVar[bool] = False
    """Whether it must see the same loss when it looks twice."""

    @property
    def wanders(self) -> bool:
        """Whether its steps are random, so that searches from one point part."""
        return False

    @property
    def remembered(self) -> int:
        """Steps that are remembered for each candidate."""
        return 0

    @abstractmethod
    def minimise(self, problem: Problem, progress: PieceProgress | None) -> Matched:
        """One iterate of each candidate."""

    @abstractmethod
    def shortened(self, iterations: int) -> Self:
        """The same with fewer iterations, in which it comes about as far where it can."""

    @abstractmethod
    def check_beside(self, distance: Distance, penalties: Sequence[Prior], restarts: Restarts) -> None:
        """Refuse other parts that it cannot work with.

        Raises:
            ValueError: Naming the part, and why.
        """


_LONGEST_STEP: Final = 0.1
"""Shorter searches have fewer steps for the same way, which may be this long."""


@dataclass(frozen=True, kw_only=True)
class Adam(Descent, Optimiser):
    """Adam, by default on the sign of the gradient and within valid images (Geiping et al., NeurIPS 2020).

    Attributes:
        iterations: Steps, 1 or more.
        learning_rate: Initial step in the normalised scale, positive.
        signed: Whether Adam receives only the sign of the gradient, or a `SoftSign` of it.
        schedule: Of the rate: "step" (tenfold down at 3/8, 5/8 and 7/8), "constant", "linear" or "cosine" to 0.
        warmup: Iterations over which the rate rises to the schedule, fewer than all.
        langevin: Standard deviation of noise added to every step, as a multiple of the learning rate, 0 or more.
        plateau: Iterations without a gain of 1 % after which a candidate goes on with the next fall of the learning
            rate, and is done when there is none left; 0 waits for ever.
        iterate: What a search that ran to its end gives: the "last" iterate, as in the reference code, or the "best",
            with the smallest measured loss. One that ended early gives the best.
        boxed: Whether candidates are clamped to valid images after every step.

    Raises:
        ValueError: If a setting is out of its range.
    """

    iterations: int = 24_000
    learning_rate: float = 0.1
    boxed: bool = True

    def __post_init__(self) -> None:
        check_whole("iterations", self.iterations, least=1)
        check_whole("warmup", self.warmup, least=0)
        check_whole("plateau", self.plateau, least=0)
        check_positive("learning_rate", self.learning_rate)
        check_weight("langevin", self.langevin)
        if not isinstance(self.signed, SoftSign):
            check_flag("signed", self.signed)
        check_flag("boxed", self.boxed)
        check_choice("schedule", self.schedule, SHAPES)
        check_choice("iterate", self.iterate, ITERATES)
        if self.warmup >= self.iterations:
            raise ValueError(f"expected warmup to end before the {self.iterations} iterations do, got {self.warmup}")

    @property
    def wanders(self) -> bool:
        """With Langevin noise."""
        return self.langevin > 0

    def minimise(self, problem: Problem, progress: PieceProgress | None) -> Matched:
        """See `Descent.run`."""
        return self.run(
            problem.objective,
            problem.start,
            project=problem.project,
            draws=problem.draws,
            companions=problem.companions,
            stop_below=problem.stop_below,
            halving=problem.halving,
            progress=progress,
        )

    def shortened(self, iterations: int) -> Self:
        """It goes as far by longer steps."""
        longer = min(_LONGEST_STEP, self.learning_rate * self.iterations / iterations)
        return replace(
            self,
            iterations=iterations,
            learning_rate=max(self.learning_rate, longer),
            warmup=self.warmup * iterations // self.iterations,
        )

    def check_beside(self, distance: Distance, penalties: Sequence[Prior], restarts: Restarts) -> None:
        """Restarts are compared between the rungs of a halving."""
        del distance, penalties
        needed = 2 ** (restarts.halving + 1) - 1
        if restarts.halving and self.iterations < needed:
            raise ValueError(
                f"halving={restarts.halving} needs {needed} iterations or more to compare "
                f"restarts between its rungs, got iterations={self.iterations}"
            )


@dataclass(frozen=True, kw_only=True)
class LBFGS(LineSearches, Optimiser):
    """L-BFGS with line searches, for smooth losses and without bounds (Zhu, Liu, Han, NeurIPS 2019).

    Attributes:
        iterations: Evaluations, line searches included, 1 or more.
        learning_rate: First trial on a line, as a multiple of the quasi-Newton step, positive.
        history: Steps that are remembered, 1 or more.
        plateau: Evaluations without a gain of 1 % after which a candidate is done; 0 waits for ever.
        joint_labels: Whether labels that were not granted are optimised with the images, as DLG does it.

    Raises:
        ValueError: If a setting is out of its range.
    """

    measures_twice: ClassVar[bool] = True

    iterations: int = 6_000
    learning_rate: float = 1.0
    history: int = 100
    joint_labels: bool = False

    def __post_init__(self) -> None:
        check_whole("iterations", self.iterations, least=1)
        check_whole("history", self.history, least=0)
        check_whole("plateau", self.plateau, least=0)
        check_positive("learning_rate", self.learning_rate)
        check_flag("joint_labels", self.joint_labels)
        if not self.history:
            raise ValueError("optimiser='l-bfgs' needs a history of 1 or more steps; DLG uses 100")

    @property
    def remembered(self) -> int:
        """Its history."""
        return self.history

    def minimise(self, problem: Problem, progress: PieceProgress | None) -> Matched:
        """See `attacker.engine.LBFGS.run`."""
        return self.run(problem.objective, problem.start, stop_below=problem.stop_below, progress=progress)

    def shortened(self, iterations: int) -> Self:
        """Its line searches find the step."""
        return replace(self, iterations=iterations)

    def check_beside(self, distance: Distance, penalties: Sequence[Prior], restarts: Restarts) -> None:
        """The loss must be smooth and stand still, and restarts are at different stages of their lines."""
        for prior in penalties:
            if prior.no_line_search and prior.weight:
                raise _misfit(prior.option, prior.no_line_search, prior.none)
        if restarts.halving:
            why = "its candidates are at different stages of their line searches and cannot be compared in between"
            raise _misfit("halving", why, "0")
        if not distance.smooth:
            why = "absolute values have kinks, and it needs a smooth loss"
            raise _misfit(f"distance={distance.name!r}", why, "cosine or l2", option="distance")


def _misfit(what: str, why: str, fits: str, *, option: str | None = None) -> ValueError:
    return ValueError(f"optimiser='l-bfgs' does not fit {what}: {why}; set {option or what} to {fits}")
