"""How long undefended gradients and updates are: what is clipped is clipped at a quantile of that."""

from __future__ import annotations

import torch
from torch import Tensor

from attacker.experiments.cells import Cell, Setup
from attacker.experiments.clients import defended_model, observe_clients
from attacker.experiments.conditions import Conditions
from attacker.experiments.defence_search.families import Family
from attacker.experiments.image_sets import images
from attacker.experiments.seeds import generator
from attacker.experiments.work import attacked_settings
from fl_precode.federation.federation import choose_device
from fl_precode.observation import Observation

CLIENTS = 16
"""That are measured; of DP-SGD so many images for each."""


def undefended_norm(experiment: Conditions, data: str, family: Family, protocol: str) -> float:
    """The quantile of the norms that the family clips at, of the untrained model.

    Images of the training set are drawn for it by the seed. DP-SGD clips gradients of single images, under either
    protocol; the rest clips what a client sends, a gradient or the update of its local steps.

    Args:
        experiment: Sizes, seed, device.
        data: Image set.
        family: Says what is clipped, and at which quantile.
        protocol: ``fedsgd`` or ``fedavg``.
    """
    loaded = images(data, experiment.data_root)
    alone = family.mechanism == "example"
    cell = Cell(
        kind="attack", setup=Setup(data=data, model=family.model, defence=family.within),
        protocol="fedsgd" if alone else protocol, batch_size=1 if alone else family.batch_size,
        local_steps=family.local_steps if protocol == "fedavg" and not alone else 0,
    )  # fmt: skip
    settings = attacked_settings(experiment, cell)
    device = choose_device(experiment.device)
    each = cell.batch_size * max(cell.local_steps, 1)
    count = CLIENTS * 4 if alone else CLIENTS
    order = torch.randperm(len(loaded.train), generator=generator("norms", experiment.seed)).tolist()
    clients = [order[start : start + each] for start in range(0, min(count * each, len(order) - each + 1), each)]
    seen = observe_clients(defended_model(settings, loaded).to(device), loaded, settings, clients, device)
    norms = torch.stack([_norm(one) for one in seen])
    return float(norms.quantile(family.quantile))


def _norm(observation: Observation) -> Tensor:
    return sum((value.double().square().sum() for value in observation.update.values()), torch.zeros(())).sqrt()
