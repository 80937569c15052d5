"""One experiment: what is to be compared, and the cells that follow from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from attacker.attacks.registry import build_attack
from attacker.experiments.attack_sets import attacks_on
from attacker.experiments.cells import Cell, Made, Setup
from attacker.experiments.conditions import Conditions
from attacker.experiments.image_sets import images
from attacker.experiments.store import Store
from attacker.experiments.work import make
from fl_precode.federation.federation import prepare

FEDERATED_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Experiment(Conditions):
    """What is compared, and by what means; see `Conditions` for its other attributes.

    Attributes:
        data: Image sets, as `load_data` takes them.
        models: Model specs.
        defences: Defence specs.
        attacks: Attack specs for every defended model; None takes those that fit, plain and adaptive.

    Raises:
        ValueError: If a selection is empty or names something twice, or there is no such attack.
    """

    data: tuple[str, ...]
    models: tuple[str, ...]
    defences: tuple[str, ...]
    attacks: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        named = {"data": self.data, "models": self.models, "defences": self.defences}
        if self.attacks is not None:
            named["attacks"] = self.attacks
        for what, chosen in named.items():
            if not chosen or len(set(chosen)) != len(chosen):
                raise ValueError(f"expected one or more different {what}, got {', '.join(chosen) or 'none'}")
        for spec in self.attacks or ():
            build_attack(spec)

    def setups(self) -> list[Setup]:
        """Defended models in the order of the page."""
        return [
            Setup(data=data, model=model, defence=defence)
            for data in self.data
            for model in self.models
            for defence in self.defences
        ]

    def why_not(self, setup: Setup) -> str:
        """Why there is no such defended model; empty when there is.

        Raises:
            SettingsError: If a name does not exist.
            DataUnavailableError: If the images are not there.
        """
        settings = self.settings(setup)
        images(setup.data, self.data_root)
        try:
            prepare(settings)
        except ValueError as error:
            return str(error)
        return ""

    def split(self) -> tuple[list[Setup], dict[Setup, str]]:
        """The setups that there are, and why there are not the others.

        Raises:
            ValueError: If a name does not exist, or a defence chosen by the user fits none of the models.
        """
        reasons = {setup: self.why_not(setup) for setup in self.setups()}
        # The scale's own list is for any models: who names only an MLP did not ask for the convolutional bottleneck.
        for defence in () if self.defences == self.scale.defences else self.defences:
            obstacles = [reason for setup, reason in reasons.items() if setup.defence == defence]
            if all(obstacles):
                raise ValueError(f"the defence {defence!r} fits none of the models: {obstacles[0]}")
        return [setup for setup in reasons if not reasons[setup]], {setup: why for setup, why in reasons.items() if why}

    def cells(self, setups: Sequence[Setup]) -> list[Cell]:
        """Everything to be done for these setups."""
        return [cell for number, setup in enumerate(setups) for cell in self._cells_of(number, setup)]

    def _cells_of(self, number: int, setup: Setup) -> Iterator[Cell]:
        yield Cell(kind="training", setup=setup)
        if self.scale.federations is None or number < self.scale.federations:
            yield Cell(kind="federation", setup=setup, protocol="fedavg", batch_size=FEDERATED_BATCH, runtime="flower")
        attacks = self.attacks or attacks_on(setup.defence, self.scale)
        for epoch in self.scale.attacked:
            for attack in attacks:
                yield attack_cell(setup, attack, epoch)
            yield Cell(
                kind="choice", setup=setup, protocol="fedsgd", batch_size=1, local_steps=0, epoch=epoch, attacks=attacks
            )

    def make(self, cell: Cell, store: Store) -> Made:
        """The result of a cell; a federation is run in this process."""
        return make(self, cell, store)

    def cost(self, cell: Cell) -> float:
        """Expected seconds, roughly: only their proportions matter."""
        scale = self.scale
        if cell.kind == "training":
            return 2.0 + 1.5 * scale.epochs
        if cell.kind == "federation":
            return 15.0 + 2.0 * scale.rounds
        if cell.kind == "choice":
            return 1.0 + 0.3 * scale.victims
        searches = any("iterations" in spec for spec in cell.attacks)
        return 1.0 + (0.0015 * scale.iterations * scale.victims if searches else 0.0)


def attack_cell(setup: Setup, attack: str, epoch: int) -> Cell:
    """An attack on clients with one image each, as in the paper."""
    return Cell(kind="attack", setup=setup, protocol="fedsgd", batch_size=1, epoch=epoch, attacks=(attack,))


def default_root(path: str) -> str:
    """A data root as absolute text; empty stays empty."""
    return str(Path(path).expanduser().resolve()) if path else ""
