"""What server, clients and evaluation must agree on: data, partitions and model, all from the same settings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import nn

from fl_precode.config import Settings
from fl_precode.data import ImageData, load_data
from fl_precode.data.partition import partition
from fl_precode.data.schedule import local_batches
from fl_precode.defences import apply_defence, check_gradient_defence
from fl_precode.models import build_model


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
        plain = build_model(self.settings.model, self.data.inputs, seed=self.settings.seed)
        return apply_defence(self.settings.defence, plain, self.data.inputs, seed=self.settings.seed)

    def batches(self, partition_id: int, server_round: int) -> list[np.ndarray]:
        """Indices of the training images that a client uses in a round, one array for each local step."""
        s = self.settings
        return local_batches(
            self.partitions[partition_id],
            seed=s.seed,
            partition_id=partition_id,
            round=server_round,
            batch_size=s.batch_size,
            local_steps=s.local_steps,
            local_epochs=s.local_epochs,
        )


@lru_cache(maxsize=2)
def prepare(settings: Settings) -> Federation:
    """Load and partition the data, and try the model once.

    Everything that can be wrong with a configuration shows here, before a process is started.

    Raises:
        ValueError: If the data cannot be partitioned as asked, or model and defence do not fit the images.
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
    federation = Federation(settings=settings, data=data, partitions=tuple(parts))
    check_gradient_defence(settings.defence, federation.model())
    return federation


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
