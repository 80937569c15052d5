"""Guarantee of a rung's noise by formula, and the share of images that no attack exceeds."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch

from attacker.audit.record.trials import share_interval
from attacker.audit.scoring.similarity import SUCCESS_THRESHOLD
from attacker.experiments.defence_search.families import Family
from attacker.experiments.defence_search.result import PrivacyOfRung
from attacker.experiments.image_sets import guesses_of, images
from attacker.experiments.precode.experiment import Experiment
from attacker.experiments.scales import search_rounds
from attacker.experiments.seeds import generator
from fl_precode.privacy import Conditions, PrivacyStatement, privacy_statement
from fl_precode.privacy.released import released_by
from fl_precode.privacy.robustness import composed, most_successes_gaussian

_GUESSED = 256
"""Training images that are guessed at: their share is what a reconstruction has to be compared with."""


class Guaranteed:
    """Epsilon and bound of the search's families.

    Args:
        experiment: One image set; its scale says how often clients send.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._data = images(experiment.data[0], experiment.data_root)

    @cached_property
    def best_guess(self) -> float:
        """Share of images that a guess without the update brings to the threshold, the upper end of its interval."""
        order = torch.randperm(len(self._data.train), generator=generator("guessed", self._experiment.seed))
        chosen = order[:_GUESSED].tolist()
        guesses = guesses_of(self._data).at(*self._data.train.batch(chosen))
        guessed = sum(guess is not None and guess.ssim >= SUCCESS_THRESHOLD for guess in guesses)
        return share_interval(guessed, len(chosen), len(chosen))[1]

    def at(self, family: Family, defences: Mapping[str, str]) -> list[PrivacyOfRung]:
        """Under each protocol, for one image and one client.

        The bound is that of one round, which is what an attack here sees. Of a client it holds for one of its images.
        """
        return [one for protocol, defence in defences.items() for one in self._under(family, protocol, defence)]

    def _under(self, family: Family, protocol: str, defence: str) -> list[PrivacyOfRung]:
        scale = self._experiment.scale
        steps = family.local_steps if protocol == "fedavg" else 1
        conditions = Conditions(
            rounds=search_rounds(scale, steps if protocol == "fedavg" else 0), steps=steps,
            batch_size=family.batch_size, images=len(self._data.train) // scale.search_clients,
        )  # fmt: skip
        said = privacy_statement(defence, conditions)
        if not said.guarantees:
            return [
                PrivacyOfRung(
                    protocol=protocol, level="client", a_round=None, composed=None, delta=conditions.delta,
                    upper_bound=None, note=said.why_not,
                )
            ]  # fmt: skip
        bound = self._bound(defence, steps)
        return [self._row(said, protocol, level, bound) for level in ("image", "client")]

    def _row(self, said: PrivacyStatement, protocol: str, level: str, bound: float | None) -> PrivacyOfRung:
        one = next(guarantee for guarantee in said.guarantees if guarantee.level == level)
        return PrivacyOfRung(
            protocol=protocol, level=one.level, a_round=one.a_round, composed=one.composed, delta=one.delta,
            upper_bound=bound, note=one.note,
        )  # fmt: skip

    def _bound(self, defence: str, steps: int) -> float | None:
        released = released_by(defence)
        if released is None:
            return None
        mu = composed(released.mu, steps) if released.per_step else released.mu
        return most_successes_gaussian(self.best_guess, mu)
