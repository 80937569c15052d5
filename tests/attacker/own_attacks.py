"""Attacks as somebody else would write them, for tests: in a module that other processes can import."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from attacker.attacks import Attack, Outcome, Reconstruction, register_attack


@dataclass(frozen=True, kw_only=True)
class Grey(Attack):
    """Answers one shade for every pixel."""

    shade: float = 0.5
    words: str = ""

    def refuses(self, victim, observation):
        return None

    def run(self, victim, observations, labels, generators, progress):
        image = victim.inputs.normalise(torch.full((1, *victim.inputs.shape), self.shade))
        return [Reconstruction(inputs=image, labels=None, outcome=Outcome.CONVERGED) for _ in observations]


@register_attack("test-black", title="a black picture", description="Black.", source="this test")
@dataclass(frozen=True, kw_only=True)
class Black(Grey):
    """Answers black."""

    shade: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Misshapen(Grey):
    """Returns what nobody can score."""

    how: str = "flat"

    def run(self, victim, observations, labels, generators, progress):
        good = super().run(victim, observations, labels, generators, progress)
        if self.how == "too few":
            return good[1:]
        if self.how == "nothing":
            return None
        images = {
            "flat": torch.zeros(1, 7),
            "of bytes": torch.zeros(1, *victim.inputs.shape, dtype=torch.uint8),
            "a list": [0.0, 1.0],
        }
        wrong = Reconstruction(inputs=images[self.how], labels=None, outcome=Outcome.CONVERGED)
        return [wrong for _ in observations]
