"""Federations as cells: a real run on Flower's simulation runtime, or the same clients' work in this process.

Both compute by ``clients.train``, on the same partitions and batches; the process leaves out messages and Ray. An
experiment reports Flower's runs. The search for a defence tries many candidates in the process, and judges the one it
recommends by Flower's.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from attacker.audit.record.schema import finite
from attacker.experiments.cells import Cell, FederationRun, Point
from attacker.experiments.clients import accuracy_and_loss, client_reply
from attacker.experiments.conditions import Conditions
from attacker.experiments.pooled_noise import Pooled, pooled
from attacker.experiments.scales import search_rounds, sgd_rate
from deploy.simulation.launch import SimulationRuntime
from fl_precode.defences.on_gradients import normal_like
from fl_precode.defences.registry import perturbation_generator
from fl_precode.federation.config import Settings
from fl_precode.federation.federation import Federation, choose_device, prepare

LOCAL_ADAM_RATE = 1e-3


def federation_settings(experiment: Conditions, cell: Cell) -> Settings:
    """Run configuration of a federation cell.

    FedAvg by epochs trains with Adam, as CVB's authors do; by a number of steps with SGD, which attacks can replay.

    Raises:
        SettingsError: If they contradict each other.
    """
    scale = experiment.scale
    rounds = scale.rounds if cell.runtime == "flower" else search_rounds(scale, cell.local_steps)
    common: dict[str, Any] = {
        "protocol": cell.protocol,
        "num_server_rounds": rounds,
        "num_clients": scale.clients if cell.runtime == "flower" else scale.search_clients,
        "batch_size": cell.batch_size,
    }
    if cell.protocol == "fedsgd":
        common |= {"learning_rate": sgd_rate(cell.batch_size)}
    elif cell.local_steps:
        common |= {"learning_rate": sgd_rate(cell.batch_size), "local_steps": cell.local_steps}
    else:
        common |= {"local_optimiser": "adam", "learning_rate": LOCAL_ADAM_RATE, "local_epochs": scale.local_epochs}
    return experiment.settings(cell.setup, **common)


class FlowerRunner:
    """Runs federations one after another on one SuperLink, which starts with the first.

    Args:
        folder: For logs and results of the runs, a folder each.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runtime: SimulationRuntime | None = None

    def __enter__(self) -> FlowerRunner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._runtime is not None:
            self._runtime.__exit__(kind, error, tb)

    def __call__(self, settings: Settings, on_round: Callable[[float], None]) -> FederationRun:
        """Run one; what an interrupted run of the same settings left is replaced.

        Args:
            settings: The run configuration.
            on_round: Hears of the share that is done.
        """
        if self._runtime is None:
            self._runtime = SimulationRuntime(environment={"OMP_NUM_THREADS": "1"}).__enter__()
        folder = self._folder / hashlib.sha256(repr(settings).encode()).hexdigest()[:16]
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, mode=0o700)
        configured = replace(settings, output_dir=str(folder))
        seen = 0

        def on_line(line: str) -> None:
            nonlocal seen
            if "[ROUND " in line:
                seen += 1
                on_round(min(1.0, seen / (settings.num_server_rounds + 1)))

        gpus = 1 / settings.num_clients if choose_device(settings.device).type == "cuda" else 0
        outcome = self._runtime.run(configured, client_resources_num_gpus=gpus, on_line=on_line)
        outcome.keep_log(folder)
        result = _result(folder / "result.json")
        return FederationRun(
            runtime="flower",
            completed=outcome.completed,
            reason=outcome.reason,
            curve=[
                Point(number=entry["round"], accuracy=entry["accuracy"], loss=finite(entry["loss"]))
                for entry in result.get("rounds", [])
            ],
            epsilon=(result.get("privacy") or {}).get("epsilon"),
            epsilon_note=(result.get("privacy") or {}).get("note", ""),
            seconds=outcome.seconds,
        )


def run_in_process(settings: Settings) -> FederationRun:
    """Clients one after another in this process; only the first and the last round are evaluated.

    Noise that clients add last is drawn once for all of them, see `pooled_noise`: the same in distribution, and not the
    same numbers.
    """
    began = time.perf_counter()
    federation = prepare(settings)
    device = choose_device(settings.device)
    model = federation.model().to(device)
    curve = [_point(0, model, federation)]
    noise = pooled(settings) if _whole_batches(federation) else Pooled(settings=settings, std=0.0)
    reason = ""
    for number in range(1, settings.num_server_rounds + 1):
        step = _round(model, federation, noise, number, device)
        if not all(bool(value.isfinite().all()) for value in step.values()):
            reason = f"round {number}: what the clients sent is not finite"
            break
        model.load_state_dict(step)
    curve.append(_point(number, model, federation))
    return FederationRun(
        runtime="process",
        completed=not reason,
        reason=reason,
        curve=curve,
        epsilon=None,
        seconds=time.perf_counter() - began,
    )


def _whole_batches(federation: Federation) -> bool:
    """Whether every client has the images of a batch, by whose size DP-SGD divides its noise."""
    return all(len(partition) >= federation.settings.batch_size for partition in federation.partitions)


def _round(
    model: nn.Module, federation: Federation, noise: Pooled, number: int, device: torch.device
) -> dict[str, Tensor]:
    """The model's state after one round: a step by the weighted mean of the updates, the weighted mean of the buffers.

    Without the buffers a model with batch normalisation would be evaluated by the statistics that it began with.
    """
    settings, state = federation.settings, dict(model.state_dict())
    parameters = dict(model.named_parameters())
    sums = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in state.items()}
    weights = []
    for client, partition in enumerate(federation.partitions):
        batches = federation.batches(client, number)
        update, buffers = client_reply(model, federation.data, noise.settings, batches, (client, number), device)
        weight = len(batches[0]) if settings.protocol == "fedsgd" else len(partition)
        weights.append(weight)
        for name, value in {**buffers, **update}.items():
            sums[name].add_(value, alpha=weight)
    step = -settings.learning_rate if settings.protocol == "fedsgd" else 1.0
    total, std = sum(weights), noise.of_mean(weights)
    generator = perturbation_generator("pooled", settings.seed, number)
    for name, value in state.items():
        mean = sums[name] / total
        if name in parameters:
            if std and parameters[name].requires_grad:
                mean += std * normal_like(value, generator)
            state[name] = value + (step * mean).to(value)
        else:
            state[name] = (mean if value.is_floating_point() else mean.round()).to(value)
    return state


def _point(number: int, model: nn.Module, federation: Federation) -> Point:
    data = federation.data
    accuracy, loss = accuracy_and_loss(model, model.state_dict(), data.test, data.inputs, seed=federation.settings.seed)
    return Point(number=number, accuracy=accuracy, loss=finite(loss) if math.isfinite(loss) else None)


def _result(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:  # the run ended before its first evaluation; its outcome says why
        return {}
    return content
