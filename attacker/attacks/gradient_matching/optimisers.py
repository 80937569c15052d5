"""Optimisers as parts of gradient matching, and the restarts that they run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Final, Self

from torch import Tensor

from attacker.attacks.gradient_matching.distances import Distance
from attacker.attacks.gradient_matching.priors import Prior
from attacker.optim.first_order import Companions, Descent, SoftSign
from attacker.optim.lbfgs import LBFGS as LineSearches
from attacker.optim.lr_schedule import SHAPES
from attacker.optim.problem import Objective
from attacker.optim.random_streams import Draws
from attacker.optim.result import Matched
from attacker.optim.setting_ranges import check_choice, check_flag, check_positive, check_weight, check_whole

PieceProgress = Callable[[float, float | None], None]

ITERATES: Final = ("best", "last")


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
                f"expected at least that number, got restarts={self.count}"
            )


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
        schedule: Schedule of the learning rate: "step" (tenfold down at 3/8, 5/8 and 7/8), "constant", "linear" or
            "cosine" to 0.
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
        """See `attacker.optim.lbfgs.LBFGS.run`."""
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
