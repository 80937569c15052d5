"""The reference ClientApp: sends a gradient (fedsgd) or locally trained weights (fedavg)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Generator, Tensor

from clients.canaries import batches_with_canaries, canaries_of
from clients.train import defended_gradient, defended_training
from fl_precode.defences.on_gradients import Batch
from fl_precode.defences.registry import gradient_defence, perturbation_generator
from fl_precode.federation.config import Settings
from fl_precode.federation.federation import ClientPart, choose_device, client_part
from fl_precode.flower.fingerprint import FINGERPRINT_KEY, PARTITION_KEY, REPLY_RECORD, running_fingerprint
from fl_precode.loss import criterion
from fl_precode.randomness.entropy import unforeseeable
from fl_precode.randomness.random_layers import sample_noise

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round of work on this client's partition."""
    settings = Settings.from_run_config(context.run_config)
    config = message.content.config_records["config"]
    fingerprint = _same_code(str(config[FINGERPRINT_KEY]))
    partition_id = _partition_id(context, settings)
    part = client_part(settings, partition_id, str(context.node_config.get("data-path", "")))
    server_round = int(cast(int, config["server-round"]))
    device = choose_device(settings.device)

    model = part.model().to(device)
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    node = str(message.metadata.dst_node_id)
    own = _batches(part, server_round, device)
    batches = batches_with_canaries(own, settings, node, server_round, part.inputs)
    defence = gradient_defence(settings.defence)
    minimised = criterion(settings.loss, part.inputs.classes)
    canaries = canaries_of(settings, node, server_round)
    with client_noise(settings, partition_id, server_round) as generator:
        if settings.protocol == "fedsgd":
            gradients, loss = defended_gradient(
                model,
                batches[0],
                defence,
                generator,
                batch_norm=settings.batch_norm,
                loss=minimised,
                canaries=canaries,
            )
            examples = len(own[0][1])
            sent = {name: gradients.get(name, value) for name, value in model.state_dict().items()}
        else:
            loss = defended_training(
                model,
                batches,
                defence,
                generator,
                learning_rate=settings.learning_rate,
                momentum=settings.momentum,
                weight_decay=settings.weight_decay,
                optimiser=settings.local_optimiser,
                batch_norm=settings.batch_norm,
                loss=minimised,
                canaries=canaries,
            )
            examples = len(part.indices)
            sent = dict(model.state_dict())
    metrics: dict[str, int | float] = {"num-examples": examples}
    if defence is None or not defence.bounds_examples:  # the exact loss would undo what DP-SGD promises
        metrics["train-loss"] = loss
    return Message(content=_reply(sent, metrics, fingerprint, partition_id), reply_to=message)


def _reply(sent: dict[str, Tensor], metrics: dict[str, int | float], fingerprint: str, partition_id: int) -> RecordDict:
    return RecordDict(
        {
            "arrays": ArrayRecord({name: value.detach().cpu() for name, value in sent.items()}),
            "metrics": MetricRecord(metrics),  # type: ignore[arg-type]
            # The partition id is for evaluation only: it lets the audit find the true images again. No attack sees it.
            REPLY_RECORD: ConfigRecord({FINGERPRINT_KEY: fingerprint, PARTITION_KEY: partition_id}),
        }
    )


def _same_code(expected: str) -> str:
    fingerprint = running_fingerprint()
    if fingerprint != expected:
        raise RuntimeError(
            f"this client runs other code ({fingerprint[:12]}) than the server ({expected[:12]}); start Flower's "
            "processes from a folder without its own 'clients' or 'fl_precode' package, and use one version everywhere"
        )
    return fingerprint


def _partition_id(context: Context, settings: Settings) -> int:
    partition_id, partitions = (int(cast(int, context.node_config[key])) for key in ("partition-id", "num-partitions"))
    if partitions != settings.num_clients:
        raise ValueError(
            f"the run has num-clients = {settings.num_clients} partitions, but Flower started {partitions} nodes; "
            f'give both the same number (--federation-config "num-supernodes={settings.num_clients}")'
        )
    return partition_id


def _batches(part: ClientPart, server_round: int, device: torch.device) -> list[Batch]:
    batches = []
    for indices in part.batches(server_round):
        images, labels = part.train.batch(indices)
        batches.append((part.inputs.normalise(images).to(device), labels.to(device)))
    return batches


@contextmanager
def client_noise(settings: Settings, partition_id: int, server_round: int) -> Iterator[Generator | None]:
    """Say where a client's noise comes from inside the block: from the operating system, where no server can look.

    Only a run that asks for it (``seeded-noise``) has noise that can be repeated: from the seed, which the server has.

    Yields:
        The generator of the defence; None for the operating system.
    """
    if not settings.seeded_noise:
        with unforeseeable(), sample_noise():
            yield None
        return
    with torch.random.fork_rng(), sample_noise():
        # Other noise in every round and at every client, and the same when the run is repeated.
        torch.manual_seed(_noise_seed(settings.seed, partition_id, server_round))
        yield perturbation_generator(settings.seed, partition_id, server_round)


def _noise_seed(seed: int, partition_id: int, server_round: int) -> int:
    """Distinct for every client and round, within the 64 bits that torch takes."""
    return ((seed % 2**24) << 40) | (partition_id << 24) | server_round
