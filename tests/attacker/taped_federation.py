"""A small federation without Flower: real data, gradients and tape, and the files that a run leaves beside it."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fl_precode.defences.registry import gradient_defence, perturbation_generator
from fl_precode.federation.config import Settings
from fl_precode.federation.federation import prepare
from fl_precode.local_training import batch_gradient, local_training
from fl_precode.tape import TapeHeader, TapeWriter


@dataclass(frozen=True)
class Taped:
    """Where things are, and what the clients really used, by (node, round)."""

    folder: Path
    settings: Settings
    used: dict[tuple[str, int], tuple[torch.Tensor, torch.Tensor]]

    @property
    def tape(self) -> Path:
        return self.folder / "tape"


def tape_federation(
    folder: Path,
    *,
    model: str = "mlp",
    defence: str = "none",
    dataset: str = "digits",
    clients: int = 2,
    rounds: int = 2,
    batch_size: int = 1,
    seed: int = 5,
    nodes: tuple[str, ...] = (),
    evaluation: bool = True,
    header: TapeHeader | None = None,
    local: dict[str, Any] | None = None,
    perturbed: bool = False,
    told: bool = True,
) -> Taped:
    """``local`` are settings of local training; with them the clients send weights.

    ``told``: the tape says how many images are behind an update.
    ``perturbed``: gradients go through the part of the defence that changes them, as a client's do.
    """
    chain = gradient_defence(defence) if perturbed else None
    settings = Settings(
        model=model,
        defence=defence,
        dataset=dataset,
        num_clients=clients,
        num_server_rounds=rounds,
        batch_size=batch_size,
        seed=seed,
        **({"protocol": "fedavg", **local} if local else {}),
    )
    federation = prepare(settings)
    inputs = federation.data.inputs
    public = {k: v for k, v in settings.to_run_config().items() if k not in ("seed", "tape", "output-dir", "data-root")}
    public.pop("code-fingerprint")
    own_header = TapeHeader(
        model=model, defence=defence, kind=settings.kind, protocol=settings.announced, inputs=inputs, settings=public
    )
    writer = TapeWriter(folder / "tape", header or own_header)
    names = nodes or tuple(f"90071992547409{i}1" for i in range(clients))
    network = federation.model()
    buffers = tuple(name for name, _ in network.named_buffers()) if local else ()
    used, results = {}, []
    for server_round in range(1, rounds + 1):
        state = {name: value.detach().clone() for name, value in network.state_dict().items()}
        writer.write_round(server_round, {name: value.numpy() for name, value in state.items()})
        updates = []
        for partition_id, node in enumerate(names):
            steps = [federation.data.train.batch(own) for own in federation.batches(partition_id, server_round)]
            batches = [(inputs.normalise(images), labels) for images, labels in steps]
            torch.manual_seed(server_round * 100 + partition_id)
            if local:
                sent = _train(network, batches, settings)
                behind = settings.announced.images_behind(len(federation.partitions[partition_id]))
                gradient = {name: (state[name] - value) / settings.learning_rate for name, value in sent.items()}
            else:
                sent, _ = batch_gradient(network, batches[0])
                if chain is not None:
                    draws = perturbation_generator(seed, partition_id, server_round)
                    sent = dict(chain(sent, generator=draws, model=network, batch=batches[0]))
                gradient, behind = sent, batch_size
            arrays = {name: value.detach().numpy() for name, value in sent.items()}
            writer.write_observation(server_round, node, arrays, batch_size=behind if told else None, buffers=buffers)
            used[node, server_round] = steps[0]
            updates.append(gradient)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter -= 0.1 * sum(update[name] for update in updates) / clients
        results.append(
            {"round": server_round, "accuracy": 0.5, "loss": 0.7, "usable": clients, "left_out": [], "seconds": 0.1}
        )
    assert writer.lost == 0
    _write_run_files(folder, settings, names, results, evaluation=evaluation)
    return Taped(folder=folder, settings=settings, used=used)


def _train(network: nn.Module, batches: list[tuple[Tensor, Tensor]], settings: Settings) -> dict[str, Tensor]:
    client = deepcopy(network)
    local_training(
        client,
        batches,
        learning_rate=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    return {name: value.detach() for name, value in client.state_dict().items()}


def _write_run_files(
    folder: Path, settings: Settings, nodes: tuple[str, ...], results: list[dict[str, object]], *, evaluation: bool
) -> None:
    config = settings.to_run_config()
    result = {"format": "fl-precode-result", "version": 1, "settings": config, "rounds": results, "tape_lost": 0}
    (folder / "result.json").write_text(json.dumps(result))
    if evaluation:
        table = {node: number for number, node in enumerate(nodes)}
        content = {"format": "fl-precode-evaluation", "version": 1, "settings": config, "nodes": table}
        (folder / "evaluation.json").write_text(json.dumps(content))
