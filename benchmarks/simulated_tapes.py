"""A federation without Flower: real images, the reference client's own code, a real tape; updates altered on request.

The altered kinds make the truth known: an update that is noise, is shuffled or is another client's says nothing of the
images that it is said to come from.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from clients.canaries import batches_with_canaries, canaries_of
from clients.train import defended_gradient, defended_training
from fl_precode.defences.on_gradients import Batch
from fl_precode.defences.registry import gradient_defence, perturbation_generator
from fl_precode.federation.config import Settings
from fl_precode.federation.federation import Federation, prepare
from fl_precode.loss import criterion
from fl_precode.randomness.random_layers import sample_noise
from fl_precode.tape import TapeHeader, TapeWriter

PRIVATE = ("seed", "tape", "output-dir", "data-root", "code-fingerprint")
ALTERED = ("noise", "permuted", "swapped")
Arrays = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One update as the server has it, and what was really behind it.

    Attributes:
        node: The client.
        round: Round of the federation.
        parameters: What the server had sent.
        update: The gradient, or received less trained weights, which points the same way.
        images: (batch, channels, height, width) in [0, 1].
        labels: (batch,)
    """

    node: str
    round: int
    parameters: Arrays
    update: Arrays
    images: Tensor
    labels: Tensor


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """A tape, and what an oracle may know.

    Attributes:
        folder: With ``tape`` and ``evaluation.json``.
        federation: Data, partitions and model.
        seen: Every update.
    """

    folder: Path
    federation: Federation
    seen: tuple[Seen, ...]


def simulate(folder: Path, settings: Settings, *, alter: str = "", clients: int | None = None) -> Simulated:
    """Run and tape a federation.

    Args:
        folder: New folder.
        settings: Settings of the federation; one round or more.
        alter: One of `ALTERED`, or empty for updates as the clients send them.
        clients: How many of them work; None for all.

    Raises:
        OSError: If the tape lost an update.
    """
    federation = prepare(settings)
    header = TapeHeader(
        model=settings.model,
        defence=settings.defence,
        kind=settings.kind,
        reply=settings.kind,
        protocol=settings.announced,
        inputs=federation.data.inputs,
        settings={key: value for key, value in settings.to_run_config().items() if key not in PRIVATE},
    )
    writer = TapeWriter(folder / "tape", header)
    nodes = tuple(f"9007199254{client:03d}" for client in range(clients or settings.num_clients))
    model = federation.model()
    seen: list[Seen] = []
    for server_round in range(1, settings.num_server_rounds + 1):
        state = {name: value.detach().clone() for name, value in model.state_dict().items()}
        writer.write_round(server_round, {name: value.numpy() for name, value in state.items()})
        work = [_client(federation, model, client, server_round, node) for client, node in enumerate(nodes)]
        trained = [name for name, _ in model.named_parameters()]
        updates = [{name: _update(sent, state, name, settings) for name in trained} for sent, _ in work]
        updates = altered(updates, alter, Generator().manual_seed(settings.seed * 1000 + server_round))
        for client, (node, update) in enumerate(zip(nodes, updates, strict=True)):
            sent, batches = work[client]
            arrays = {**sent, **{name: _sent(update[name], state[name], settings) for name in trained}}
            behind = settings.announced.images_behind(len(federation.partitions[client]))
            writer.write_observation(
                server_round,
                node,
                {name: value.detach().numpy() for name, value in arrays.items()},
                batch_size=len(batches[0][1]) if settings.protocol == "fedsgd" else behind,
                buffers=tuple(name for name, _ in model.named_buffers()),
            )
            images, labels = batches[0]
            seen.append(
                Seen(
                    node=node,
                    round=server_round,
                    parameters=state,
                    update=update if settings.protocol == "fedsgd" else {n: -v for n, v in update.items()},
                    images=federation.data.inputs.denormalise(images),
                    labels=labels,
                )
            )
        _step(model, updates, settings)
    if writer.lost:
        raise OSError(f"{folder}: the tape lost {writer.lost} entries")
    _write_evaluation(folder, settings, nodes)
    return Simulated(folder=folder, federation=federation, seen=tuple(seen))


def altered(updates: Sequence[Arrays], alter: str, generator: Generator) -> list[Arrays]:
    """Updates that say nothing of their images; the same ones where nothing is to be altered.

    Raises:
        ValueError: If there is no such kind.
    """
    if not alter:
        return list(updates)
    if alter == "swapped":
        return [*updates[1:], updates[0]]
    if alter not in ALTERED:
        raise ValueError(f"expected one of {', '.join(ALTERED)}, got {alter!r}")
    change = _shuffled if alter == "permuted" else _noise_like
    return [{name: change(value, generator) for name, value in one.items()} for one in updates]


def _shuffled(value: Tensor, generator: Generator) -> Tensor:
    return value.flatten()[torch.randperm(value.numel(), generator=generator)].reshape(value.shape)


def _noise_like(value: Tensor, generator: Generator) -> Tensor:
    return torch.randn(value.shape, generator=generator) * value.square().mean().sqrt()


def _client(
    federation: Federation, model: nn.Module, partition_id: int, server_round: int, node: str
) -> tuple[Arrays, list[Batch]]:
    """What a client sends, by the code of `clients.app`, and its batches."""
    settings, inputs = federation.settings, federation.data.inputs
    drawn = [federation.data.train.batch(indices) for indices in federation.batches(partition_id, server_round)]
    batches = [(inputs.normalise(images), labels) for images, labels in drawn]
    work = batches_with_canaries(batches, settings, node, server_round, inputs)
    defence = gradient_defence(settings.defence)
    # Nobody is told this seed, and no attack looks for one: the same audit again, under noise as clients draw it.
    generator = perturbation_generator("simulated", settings.seed, partition_id, server_round)
    own = copy.deepcopy(model)
    loss = criterion(settings.loss, inputs.classes)
    canaries = canaries_of(settings, node, server_round)
    with torch.random.fork_rng(), sample_noise():
        torch.manual_seed(generator.initial_seed())
        if settings.protocol == "fedsgd":
            gradients, _ = defended_gradient(
                own, work[0], defence, generator, batch_norm=settings.batch_norm, loss=loss, canaries=canaries
            )
            return {name: gradients.get(name, value) for name, value in own.state_dict().items()}, batches
        defended_training(
            own,
            work,
            defence,
            generator,
            learning_rate=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            optimiser=settings.local_optimiser,
            batch_norm=settings.batch_norm,
            loss=loss,
            canaries=canaries,
        )
    return {name: value.detach() for name, value in own.state_dict().items()}, batches


def _update(sent: Arrays, state: Arrays, name: str, settings: Settings) -> Tensor:
    value = sent[name] if settings.protocol == "fedsgd" else sent[name] - state[name]
    return value.detach()


def _sent(update: Tensor, state: Tensor, settings: Settings) -> Tensor:
    return update if settings.protocol == "fedsgd" else state + update


def _step(model: nn.Module, updates: Sequence[Arrays], settings: Settings) -> None:
    factor = -settings.learning_rate if settings.protocol == "fedsgd" else 1.0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += factor * torch.stack([one[name] for one in updates]).mean(dim=0)


def _write_evaluation(folder: Path, settings: Settings, nodes: Sequence[str]) -> None:
    config: Mapping[str, object] = settings.to_run_config()
    content = {
        "format": "fl-precode-evaluation",
        "version": 1,
        "settings": config,
        "nodes": {node: client for client, node in enumerate(nodes)},
    }
    (folder / "evaluation.json").write_text(json.dumps(content))
