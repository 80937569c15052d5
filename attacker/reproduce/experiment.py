"""One experiment: what is to be compared, and the cells that follow from it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from attacker.attacks.registry import build_attack
from attacker.audit.guesses import Guesses
from attacker.audit.machine import versions
from attacker.audit.truth_federation import TrainingImages
from attacker.reproduce.cells import Cell, Made, Setup
from attacker.reproduce.scales import SCALES, Scale
from attacker.reproduce.store import Store
from attacker.reproduce.worst_case import attacks_on
from fl_precode.config import Settings
from fl_precode.data import ImageData, load_data
from fl_precode.federation import prepare

BATCH = 64
"""Of the central training, as in the paper."""
ADAM_RATE = 1e-3
FEDERATED_BATCH = 32
GUESSES = "the best guess"
"""What an attacked image has to come back beyond; results that were compared with less are made again."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What is compared, and by what means.

    Attributes:
        scale: Sizes.
        data: Image sets, as `load_data` takes them.
        models: Model specs.
        defences: Defence specs.
        attacks: Attack specs for every defended model; None takes those that fit, plain and adaptive.
        data_root: Folder of downloaded sets.
        seed: Of everything random.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ValueError: If a selection is empty or names something twice, or there is no such attack.
    """

    scale: Scale
    data: tuple[str, ...]
    models: tuple[str, ...]
    defences: tuple[str, ...]
    attacks: tuple[str, ...] | None = None
    data_root: str = ""
    seed: int = 0
    device: str = "auto"

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

    def settings(self, setup: Setup, **changes: Any) -> Settings:
        """Run configuration of a federation with this setup; its noise comes from the seed, to be repeated.

        Raises:
            SettingsError: If something in it does not exist.
        """
        return Settings(
            dataset=setup.data, data_root=self.data_root, model=setup.model, defence=setup.defence, seed=self.seed,
            seeded_noise=True, device=self.device, **changes,
        )  # fmt: skip

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
            own = [reason for setup, reason in reasons.items() if setup.defence == defence]
            if all(own):
                raise ValueError(f"the defence {defence!r} fits none of the models: {own[0]}")
        return [one for one in reasons if not reasons[one]], {one: why for one, why in reasons.items() if why}

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

    def recipe(self, cell: Cell) -> dict[str, Any]:
        """What the cell's result depends on besides the cell."""
        scale = self.scale
        common: dict[str, Any] = {"seed": self.seed, "images": image_digest(cell.setup.data, self.data_root)}
        common |= {name: version for name, version in versions().items() if name in ("fl-precode", "torch")}
        if cell.kind == "training":
            return common | {"epochs": scale.epochs, "kept": scale.attacked}
        if cell.kind == "federation":
            rounds = scale.rounds if cell.runtime == "flower" else scale.search_rounds
            return common | {"rounds": rounds, "clients": scale.clients, "local_epochs": scale.local_epochs}
        return common | {"victims": scale.victims, "compared with": GUESSES}

    def make(self, cell: Cell, store: Store) -> Made:
        """The result of a cell; a federation is run in this process."""
        from attacker.reproduce.work import make

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


def of_scale(name: str) -> Scale:
    """A scale by name.

    Raises:
        ValueError: If there is none.
    """
    if name not in SCALES:
        raise ValueError(f"unknown scale {name!r}; expected one of {', '.join(SCALES)}")
    return SCALES[name]


@lru_cache(maxsize=4)
def images(data: str, data_root: str) -> ImageData:
    """An image set, loaded once in a process; see `load_data`."""
    return load_data(data, data_root)


@lru_cache(maxsize=4)
def guesses_of(data: ImageData) -> Guesses:
    """What images can be guessed to be by somebody who has other training images, and no update."""
    return Guesses(TrainingImages(data.train))


@lru_cache(maxsize=16)
def image_digest(data: str, data_root: str) -> str:
    """Of all images and labels, so that other images under an old name are another experiment."""
    loaded = images(data, data_root)
    digest = hashlib.sha256(repr(loaded.inputs).encode())
    for part in (loaded.train, loaded.test):
        digest.update(part.images.contiguous().numpy().tobytes())
        digest.update(part.labels.numpy().tobytes())
    return digest.hexdigest()[:16]


def whole_seed(*identity: int | str) -> int:
    """A seed of its own for every identity."""
    return int.from_bytes(hashlib.sha256(repr(identity).encode()).digest()[:7], "big")


def default_root(path: str) -> str:
    """A data root as absolute text; empty stays empty."""
    return str(Path(path).expanduser().resolve()) if path else ""


def generator(*identity: int | str) -> torch.Generator:
    """A CPU generator of its own for every identity."""
    return torch.Generator().manual_seed(whole_seed(*identity))
