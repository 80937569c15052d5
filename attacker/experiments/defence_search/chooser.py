"""Choice of the next family by Optuna, from the losses and disclosures of the earlier ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from attacker.experiments.defence_search.families import Family

_TRIES: Final = 200
"""Times Optuna may name a family that there is not, or that was tried, before the next in order is taken."""

_STARTING: Final = 6
"""Families before the sampler goes by what it has seen: these are the first in order."""


class FamilyChooser:
    """Chooses families by the tree-structured Parzen estimator, with two values to make small.

    With the same seed, families and values the choice is the same.

    Args:
        families: Each once; the first are tried first.
        seed: Seed of the sampler.

    Raises:
        ModuleNotFoundError: If Optuna is not installed.
    """

    def __init__(self, families: Sequence[Family], seed: int) -> None:
        try:
            import optuna
        except ImportError as error:
            raise ModuleNotFoundError(
                f"the search for a defence needs Optuna ({error}); pip install 'fl-precode[experiments]'"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna: Any = optuna
        self._left = list(families)
        self._tried: dict[Family, tuple[float, float]] = {}
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_STARTING)
        self._study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
        self._space: dict[str, Any] = {
            name: optuna.distributions.CategoricalDistribution(sorted({asdict(one)[name] for one in families}))
            for name in asdict(families[0])
        }
        for family in families[:_STARTING]:
            self._study.enqueue_trial(asdict(family))
        self._open: Any = None

    def next(self) -> Family | None:
        """A family that was not tried, or None when there is none left."""
        if not self._left:
            return None
        for _ in range(_TRIES):
            trial = self._study.ask(self._space)
            family = Family(**trial.params)
            if family in self._left:
                break
            self._answer(trial, family)
        else:
            family = self._left[0]
            self._study.enqueue_trial(asdict(family))
            trial = self._study.ask(self._space)
        self._left.remove(family)
        self._open = trial
        return family

    def tell(self, family: Family, *, lost: float, disclosed: float) -> None:
        """What the family that was named last came to.

        Args:
            family: That one.
            lost: Accuracy, at the lowest rung that holds.
            disclosed: Share of images, at the highest rung that can be afforded.
        """
        self._tried[family] = lost, disclosed
        self._study.tell(self._open, self._tried[family])

    def _answer(self, trial: Any, family: Family) -> None:
        """To a family that is not tried now: what it came to before, or that there is no such one."""
        known = self._tried.get(family)
        if known is None:
            self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(trial, known)
