"""Scales of the experiment: minutes on a laptop, tens of minutes, or as in the paper on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

from attacker.attacks.selection import paper_step

S = TypeVar("S")

PAPER_DEFENCES = (
    "none",
    "noise:std=0.001",
    "noise:std=0.01",
    "noise:std=0.1",
    "prune:share=0.1",
    "prune:share=0.5",
    "prune:share=0.9",
    "precode",
    "cvb",
    "precode+ppp:std=0.01",
    "dp:max_norm=1,noise_multiplier=1.1",
)
"""PRECODE's own comparison, and what came after it. PPP alone is not here: see `PPP_ALONE`."""

PPP_ALONE = (
    "PPP alone is not in the grid: it adds noise where a bottleneck leaves gradients deterministic, and without a "
    "bottleneck that is everywhere. PPP alone is therefore Gaussian noise on everything, the rows “noise”."
)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Sizes of one experiment.

    Attributes:
        name: As on the command line.
        data: Image sets unless others are named.
        models: Model specs unless others are named.
        defences: Defence specs unless others are named.
        victims: Training images to attack in every cell, one at a time.
        iterations: Iterations of every optimising attack.
        epochs: Epochs of the central training (Adam 0.001, batch 64, as in the paper).
        attacked: Epochs after which the model is attacked; 0 is the untrained model.
        rounds: Rounds of each federation (FedAvg).
        clients: Clients of each federation.
        local_epochs: Local epochs of each client in a round.
        federations: Maximum number of federations, the first ones of the grid; None for one for every defended model.
        search_rounds: Rounds of each federation that the search for a defence compares by; see `search_rounds`.
        search_clients: Clients of each of these federations.
        search_seeds: How often each of them is run, from another seed.
        search_victims: Images that the search attacks while it looks for a rung.
        judged: Other images, on which what it found is judged.
        patient: The first of these, which patient searches attack, and all searches once the model is trained.
    """

    name: str
    data: tuple[str, ...]
    models: tuple[str, ...]
    defences: tuple[str, ...]
    victims: int
    iterations: int
    epochs: int
    attacked: tuple[int, ...]
    rounds: int
    clients: int
    local_epochs: int
    federations: int | None = None
    search_rounds: int = 100
    search_clients: int = 16
    search_seeds: int = 3
    search_victims: int = 16
    judged: int = 64
    patient: int = 16

    @property
    def learning_rate(self) -> float:
        """Step of Inverting Gradients, see `paper_step`."""
        return paper_step(self.iterations)


SCALES: Mapping[str, Scale] = MappingProxyType(
    {
        "smoke": Scale(
            name="smoke",
            data=("photos",),
            models=("lenet", "mlp"),
            defences=("none", "noise:std=0.01", "precode"),
            victims=4,
            iterations=300,
            epochs=3,
            attacked=(0, 1),
            rounds=2,
            clients=2,
            local_epochs=1,
            federations=1,
            search_rounds=100,
            search_clients=8,
            search_victims=4,
            judged=4,
            patient=4,
        ),
        "small": Scale(
            name="small",
            data=("cifar10",),
            models=("lenet", "mlp"),
            defences=PAPER_DEFENCES,
            victims=16,
            iterations=1_000,
            epochs=4,
            attacked=(0, 2),
            rounds=4,
            clients=4,
            local_epochs=1,
            search_rounds=100,
        ),
        "paper": Scale(
            name="paper",
            data=("cifar10", "cifar100"),
            models=("lenet", "mlp"),
            defences=PAPER_DEFENCES,
            victims=128,
            iterations=7_000,
            epochs=300,
            attacked=(0, 10, 150),
            rounds=100,
            clients=10,
            local_epochs=1,
            search_rounds=2_000,
            search_clients=100,
            judged=128,
            patient=128,
        ),
    }
)
"""Scales by name."""


def named(scales: Mapping[str, S], name: str) -> S:
    """A scale by name.

    Raises:
        ValueError: If there is none.
    """
    if name not in scales:
        raise ValueError(f"unknown scale {name!r}; expected one of {', '.join(scales)}")
    return scales[name]


def search_rounds(scale: Scale, local_steps: int) -> int:
    """Rounds of a federation that defences are compared by: fewer where a client makes several steps in each.

    Whatever the number of steps, a client trains on as many images.
    """
    return max(1, scale.search_rounds // max(1, local_steps))


def sgd_rate(batch_size: int) -> float:
    """Learning rate of these federations, on gradients and in local training.

    With 0.1 the undefended MLP was measured to diverge on batches of one image.
    """
    return 0.01 if batch_size < _LARGE_BATCH else 0.05


_LARGE_BATCH = 16
