"""Norms of undefended gradients and updates, whose quantiles are the clips."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from attacker.experiments.cells import Cell, Setup
from attacker.experiments.clients import defended_model, observe_clients
from attacker.experiments.defence_search.families import Family
from attacker.experiments.defence_search.prefetch import Ahead
from attacker.experiments.image_sets import images
from attacker.experiments.precode.experiment import Experiment
from attacker.experiments.seeds import generator
from attacker.experiments.work import attacked_settings
from fl_precode.federation.federation import choose_device
from fl_precode.observation import Observation

CLIENTS = 16
"""That are measured; of DP-SGD so many images for each."""


def undefended_norm(experiment: Experiment, ahead: Ahead, family: Family, protocol: str) -> float:
    """The quantile of the norms that the family clips at, of the model without noise.

    Norms are those at all weights that are attacked, untrained and during training: gradients grow while a model
    learns, and a clip at the first ones would stop it. Images of the training set are drawn for it by the seed. DP-SGD
    clips gradients of single images, under either protocol; the rest clips what a client sends, a gradient or the
    update of its local steps.

    Args:
        experiment: Image set, sizes, seed, device.
        ahead: Trains the model.
        family: Says what is clipped, and at which quantile.
        protocol: ``fedsgd`` or ``fedavg``.
    """
    scale = replace(experiment.scale, epochs=max(experiment.scale.attacked))
    experiment = replace(experiment, scale=scale)
    (data,) = experiment.data
    alone = family.mechanism == "example"
    cell = Cell(
        kind="attack", setup=Setup(data=data, model=family.model, defence=family.within),
        protocol="fedsgd" if alone else protocol, batch_size=1 if alone else family.batch_size,
        local_steps=family.local_steps if protocol == "fedavg" and not alone else 0,
    )  # fmt: skip
    norms = [norm for epoch in scale.attacked for norm in _norms(experiment, ahead, cell, epoch)]
    return float(torch.stack(norms).quantile(family.quantile))


def _norms(experiment: Experiment, ahead: Ahead, cell: Cell, epoch: int) -> list[Tensor]:
    loaded = images(cell.setup.data, experiment.data_root)
    settings = attacked_settings(experiment, cell)
    device = choose_device(experiment.device)
    model = defended_model(settings, loaded)
    if epoch:
        model.load_state_dict(ahead.trained(experiment, cell.setup, epoch))
    each = cell.batch_size * max(cell.local_steps, 1)
    count = CLIENTS * 4 if each == 1 else CLIENTS
    order = torch.randperm(len(loaded.train), generator=generator("norms", experiment.seed)).tolist()
    clients = [order[start : start + each] for start in range(0, min(count * each, len(order) - each + 1), each)]
    return [_norm(one) for one in observe_clients(model.to(device), loaded, settings, clients, device)]


def _norm(observation: Observation) -> Tensor:
    return sum((value.double().square().sum() for value in observation.update.values()), torch.zeros(())).sqrt()
