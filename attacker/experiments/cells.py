"""The pieces of an experiment: what identifies each, and what it leaves behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from attacker.audit.record.schema import Count, Entry, ImageScore, Number, Share

Kind = Literal["training", "federation", "attack", "choice"]
KINDS: tuple[Kind, ...] = ("training", "federation", "attack", "choice")
"""In the order in which they are worked on: an attack may need trained weights, a choice needs the attacks."""


@dataclass(frozen=True, kw_only=True, order=True)
class Setup:
    """A defended model on an image set."""

    data: str
    model: str
    defence: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One piece of work.

    Attributes:
        kind: What is done.
        setup: On what.
        protocol: What the clients send: ``fedsgd`` or ``fedavg``; empty for a training.
        batch_size: Images of one client's step, in federations and attacks.
        local_steps: Local steps of the attacked client under FedAvg.
        epoch: Epoch of the central training whose weights are attacked; 0 is the untrained model.
        attacks: The attack's spec; of a choice those that it is between.
        part: Which images are attacked: the first of a random order (empty), or, for the search of a defence,
            ``validation`` or ``judged``, which have none in common; no guess resembles them, if there are such.
        runtime: Runtime of a federation: ``flower``, or ``process`` for the same clients' work in this process.
    """

    kind: Kind
    setup: Setup
    protocol: str = ""
    batch_size: int = 0
    local_steps: int = 0
    epoch: int = 0
    attacks: tuple[str, ...] = ()
    part: Literal["", "validation", "judged"] = ""
    runtime: Literal["", "flower", "process"] = ""

    @property
    def title(self) -> str:
        """For people."""
        name = f"{self.kind}: {self.setup.model}, {self.setup.defence}"
        if self.kind == "attack":
            name += f", {self.attacks[0].partition(':')[0]}"
        return name

    @property
    def stem(self) -> str:
        """Beginning of the name of its file."""
        return f"{self.kind}-{self.setup.model}-{self.setup.defence}"

    @property
    def made(self) -> type[Made]:
        """What its result is."""
        return RESULTS[self.kind]


class Made(Entry):
    """The result of a cell."""

    seconds: Number


class Point(Entry):
    """Accuracy after an epoch or a round; 0 is the untrained model."""

    number: Count
    accuracy: Share
    loss: Number | None


class StoredFile(Entry):
    """A file of tensors beside the cells."""

    name: str
    sha256: str


class Training(Made):
    """A central training."""

    kind: Literal["training"] = "training"
    curve: list[Point]
    parameters: Count
    parameters_undefended: Count
    payload_bytes: Count
    payload_bytes_undefended: Count
    client_seconds: Number
    weights: dict[int, StoredFile]


class FederationRun(Made):
    """A federation: what its server measured after every round."""

    kind: Literal["federation"] = "federation"
    runtime: str
    completed: bool
    reason: str
    curve: list[Point]
    epsilon: Number | None
    epsilon_note: str = Field(default="", description="what epsilon assumes, or why there is none")


class VictimScore(ImageScore):
    """What an attack made of one training image."""

    image: Count
    label: Count
    matching_loss: Number | None


class AttackedVictims(Made):
    """An attack on all victims."""

    kind: Literal["attack"] = "attack"
    victims: list[VictimScore]
    images: StoredFile | None


class ChosenAttacks(Made):
    """Which attack the attacker takes for each client, by its own measure; empty where none gave an image."""

    kind: Literal["choice"] = "choice"
    chosen: list[str]


Result = Training | FederationRun | AttackedVictims | ChosenAttacks
RESULTS: dict[Kind, type[Training] | type[FederationRun] | type[AttackedVictims] | type[ChosenAttacks]] = {
    "training": Training,
    "federation": FederationRun,
    "attack": AttackedVictims,
    "choice": ChosenAttacks,
}
