"""Settings of an audit, apart from the tapes and the place where it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from attacker.attacks.base import Attack
from attacker.attacks.objects import spec_of
from attacker.attacks.registry import build_attack
from attacker.audit.threat_model import Knowledge
from attacker.metrics.places import CANDIDATES


@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """What is to be done with every tape.

    Attributes:
        attacks: Specs or objects, run as they are; None plans all that apply.
        victims: Updates to attack on each tape, at least 1; fewer when the tape has fewer.
        seed: Random seed of the choice of victims and of the attacks, not negative.
        knowledge: What the attacker knows.
        budget: Seconds that one processor may take for all attacks, as estimated; None for as long as it takes.
        control: Whether defended federations get an undefended control.
        rounds: First and last round to choose victims from; None for all.
        device: As torch names it.
        threads: Threads of the processor, for each attack.
        canary_secret: What says which canaries were in the updates; None for the reference federation's, whose seed
            is known. For the evaluation alone: attacks never get it, and an audit may be gone on with by another.
        leakage: Whether leakage indices are computed at the end, where the model is small enough. No attack depends on
            them, so that an audit may be gone on with by the other choice.
        candidates: Other images, of the same class where there are enough, that each true image is told from; 0 for
            none. No attack depends on them either.
        standard: Name of the frozen set of attacks that this is a run of; empty for none. What is found then depends on
            no clock.

    Raises:
        TypeError: If an attack is neither a spec nor an object.
        ValueError: If an attack is unknown or named twice, or a number is out of its range.
    """

    attacks: tuple[str | Attack, ...] | None = None
    victims: int = 4
    seed: int = 0
    knowledge: Knowledge = field(default_factory=Knowledge)
    budget: float | None = None
    control: bool = True
    rounds: tuple[int, int] | None = None
    device: str = "cpu"
    threads: int = 1
    leakage: bool = False
    canary_secret: str | None = field(default=None, repr=False)
    candidates: int = CANDIDATES
    standard: str = ""

    def __post_init__(self) -> None:
        if self.victims < 1:
            raise ValueError(f"expected at least one tape and one victim, got {self.victims} victims")
        if self.candidates < 0:
            raise ValueError(f"expected 0 or more candidates that each image is told from, got {self.candidates}")
        if self.attacks is not None:
            build_attacks(self.specs or ())
        elif self.budget is None:
            raise ValueError("expected a budget for the plan, in seconds, or the attacks to run")
        if self.budget is not None and not 0 < self.budget < float("inf"):
            raise ValueError(f"expected a positive budget in seconds, got {self.budget:g}")
        if self.standard and (self.attacks is None or self.budget is not None):
            raise ValueError(f"expected the attacks of {self.standard}, and no budget in seconds: it goes by no clock")
        if self.rounds is not None and not 0 <= self.rounds[0] <= self.rounds[1]:
            raise ValueError(f"expected rounds from a first to a last one, got {self.rounds[0]}:{self.rounds[1]}")

    @property
    def specs(self) -> tuple[str, ...] | None:
        """Specs of the attacks, in order, from which they can be built; None plans all that apply."""
        return None if self.attacks is None else tuple(spec_of(attack) for attack in self.attacks)

    def identity(self) -> dict[str, Any]:
        """Everything here that attacks depend on, in words of the command line."""
        return {
            **({"standard": self.standard} if self.standard else {}),
            "attacks": "planned" if self.specs is None else " ".join(self.specs),
            "victims": self.victims,
            "seed": self.seed,
            "knowledge": " ".join(sorted(self.knowledge.granted)),
            "budget": self.budget,
            "control": self.control,
            "rounds": "all" if self.rounds is None else f"{self.rounds[0]}:{self.rounds[1]}",
            "device": self.device,
            "threads": self.threads,
        }


def build_attacks(specs: tuple[str, ...] | list[str]) -> dict[str, Attack]:
    """Attacks by spec, in order.

    Raises:
        ValueError: If there is none, one is unknown or one is named twice.
    """
    if not specs or len(set(specs)) != len(specs):
        raise ValueError(f"expected one or more different attacks, got {', '.join(specs) or 'none'}")
    return {spec: build_attack(spec) for spec in specs}
