"""Common ground of server, clients and evaluation: data, partitions and model, all from the same settings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fl_precode.data import ImageData, ImageDataset, load_data, read_partition
from fl_precode.data.partition import partition
from fl_precode.data.schedule import local_batches
from fl_precode.defences.registry import apply_defence, check_gradient_defence
from fl_precode.federation.config import Settings
from fl_precode.models import InputSpec, build_model
from fl_precode.privacy.canaries import Canaries


@dataclass(frozen=True, kw_only=True)
class Federation:
    """Data and partitions of one federation.

    Attributes:
        settings: The run configuration.
        data: Training and test images with their input domain.
        partitions: For each client the indices of its training images, sorted; disjoint, together all of them.
    """

    settings: Settings
    data: ImageData
    partitions: tuple[np.ndarray, ...]

    def model(self) -> nn.Module:
        """The freshly initialised model, defence included; equal for equal settings."""
        return federation_model(self.settings, self.data.inputs)

    def batches(self, partition_id: int, server_round: int) -> list[np.ndarray]:
        """Indices of the training images that a client uses in a round, one array for each local step."""
        return round_batches(self.settings, self.partitions[partition_id], partition_id, server_round)


@dataclass(frozen=True, kw_only=True)
class ClientPart:
    """What one client knows: the settings and its own images.

    Attributes:
        settings: The run configuration.
        train: Images from which the batches are drawn.
        inputs: The input domain of the whole federation.
        indices: Indices of this client's images in ``train``.
        partition_id: Partition index of this client.
    """

    settings: Settings
    train: ImageDataset
    inputs: InputSpec
    indices: np.ndarray
    partition_id: int

    def model(self) -> nn.Module:
        """The freshly initialised model, defence included; equal for equal settings."""
        return federation_model(self.settings, self.inputs)

    def batches(self, server_round: int) -> list[np.ndarray]:
        """Indices into ``train`` that this client uses in a round, one array for each local step."""
        return round_batches(self.settings, self.indices, self.partition_id, server_round)


def federation_model(settings: Settings, inputs: InputSpec) -> nn.Module:
    """The freshly initialised model, defence included; equal for equal settings and input domain."""
    plain = build_model(settings.model, inputs, seed=settings.seed)
    return apply_defence(settings.defence, plain, inputs, seed=settings.seed)


def round_batches(settings: Settings, samples: np.ndarray, partition_id: int, server_round: int) -> list[np.ndarray]:
    """The samples that a client uses in a round, one array for each local step."""
    return local_batches(
        samples,
        seed=settings.seed,
        partition_id=partition_id,
        round=server_round,
        batch_size=settings.batch_size,
        local_steps=settings.local_steps,
        local_epochs=settings.local_epochs,
    )


def client_part(settings: Settings, partition_id: int, data_path: str = "") -> ClientPart:
    """What a client trains on: its own file, or its share of the whole set where every process has that.

    Args:
        settings: The run configuration.
        partition_id: Partition index of this client.
        data_path: File that `write_partition` wrote; empty loads the data set of the settings and partitions it.

    Raises:
        ValueError: If the data cannot be partitioned as asked, or the file is no partition.
        RuntimeError: If the data is not there.
    """
    if data_path:
        own = read_partition(Path(data_path))
        indices = np.arange(len(own.train))
        return ClientPart(
            settings=settings, train=own.train, inputs=own.inputs, indices=indices, partition_id=partition_id
        )
    federation = prepare(settings)
    return ClientPart(
        settings=settings,
        train=federation.data.train,
        inputs=federation.data.inputs,
        indices=federation.partitions[partition_id],
        partition_id=partition_id,
    )


@lru_cache(maxsize=2)
def prepare(settings: Settings) -> Federation:
    """Load and partition the data, and try the model once.

    Everything that can be wrong with a configuration shows here, before a process is started.

    Raises:
        ValueError: If the data cannot be partitioned as asked, model and defence do not fit the images, or the model
            is too small for so many canaries.
        RuntimeError: If the data is not there and cannot be had.
    """
    federation = partitioned(settings)
    model = federation.model()
    check_gradient_defence(settings.defence, model)
    if settings.canaries:
        Canaries.parse(settings.canaries).check(sum(p.numel() for p in model.parameters() if p.requires_grad))
    return federation


@lru_cache(maxsize=2)
def partitioned(settings: Settings) -> Federation:
    """Load and partition the data; the model is not made, which takes seconds where it is large.

    Raises:
        ValueError: If the data cannot be partitioned as asked.
        RuntimeError: If the data is not there and cannot be had.
    """
    data = load_data(settings.dataset, settings.data_root)
    parts = partition(
        data.train.labels,
        num_clients=settings.num_clients,
        scheme=settings.partition,
        seed=settings.seed,
        dirichlet_alpha=settings.dirichlet_alpha,
        classes_per_client=settings.classes_per_client,
    )
    return Federation(settings=settings, data=data, partitions=tuple(parts))


def choose_device(wanted: str) -> torch.device:
    """The device for ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ValueError: If CUDA is asked for and this machine has none.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ValueError(
            "device 'cuda' was asked for, but PyTorch sees no CUDA device here; "
            "use device 'auto' or 'cpu', or give the clients a GPU (client-resources-num-gpus)"
        )
    return torch.device("cuda" if available and wanted != "cpu" else "cpu")
