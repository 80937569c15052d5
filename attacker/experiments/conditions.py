"""Under which conditions the cells of an experiment are made, whatever it compares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from attacker.experiments.cells import Cell, Setup
from attacker.experiments.image_sets import GUESSES, made_from
from attacker.experiments.scales import Scale, search_rounds, sgd_rate
from fl_precode.federation.config import Settings


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What every cell of an experiment is made with.

    Attributes:
        scale: Sizes.
        data_root: Folder of downloaded sets.
        seed: Random seed.
        device: ``auto``, ``cpu`` or ``cuda``.
    """

    scale: Scale
    data_root: str = ""
    seed: int = 0
    device: str = "auto"

    def settings(self, setup: Setup, **changes: Any) -> Settings:
        """Run configuration of a federation with this setup; its noise comes from the seed, to be repeated.

        Raises:
            SettingsError: If something in it does not exist.
        """
        return Settings(
            dataset=setup.data, data_root=self.data_root, model=setup.model, defence=setup.defence, seed=self.seed,
            seeded_noise=True, device=self.device, **changes,
        )  # fmt: skip

    def recipe(self, cell: Cell) -> dict[str, Any]:
        """What the cell's result depends on besides the cell."""
        scale = self.scale
        common = made_from(cell.setup.data, self.data_root, self.seed)
        if cell.kind == "training":
            return common | {"epochs": scale.epochs, "kept": scale.attacked}
        if cell.kind == "federation" and cell.runtime != "flower":
            return common | {
                "rounds": search_rounds(scale, cell.local_steps), "clients": scale.search_clients,
                "learning rate": sgd_rate(cell.batch_size),
            }  # fmt: skip
        if cell.kind == "federation":
            return common | {"rounds": scale.rounds, "clients": scale.clients, "local_epochs": scale.local_epochs}
        return common | {"victims": scale.victims, "compared with": GUESSES}
