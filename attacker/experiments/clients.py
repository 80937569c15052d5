"""Clients of the reference app, by their own code: gradients, local training, central training.

The only file of the attacker that reaches ``clients`` and ``server``.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from attacker.experiments.seeds import whole_seed
from attacker.simulate import change, observed
from clients.train import defended_gradient, defended_training
from fl_precode.data import ImageData
from fl_precode.defences.on_gradients import Batch
from fl_precode.defences.registry import apply_defence, gradient_defence, perturbation_generator
from fl_precode.federation.config import Settings
from fl_precode.models import build_model
from fl_precode.observation import Observation
from fl_precode.randomness.random_layers import sample_noise
from server.evaluate import accuracy_and_loss

__all__ = [
    "accuracy_and_loss",
    "central_epochs",
    "client_reply",
    "client_seconds",
    "defended_model",
    "observe_clients",
]


BATCH = 64
"""Of the central training, as in the paper."""
ADAM_RATE = 1e-3


def defended_model(settings: Settings, data: ImageData) -> nn.Module:
    """The untrained model as every party of the federation would build it."""
    plain = build_model(settings.model, data.inputs, seed=settings.seed)
    return apply_defence(settings.defence, plain, data.inputs, seed=settings.seed)


def central_epochs(
    model: nn.Module, data: ImageData, settings: Settings, epochs: int, device: torch.device
) -> Iterator[int]:
    """Train in place on all training images in one place: Adam on the clients' defended gradients of batches of 64.

    Yields:
        The number of each finished epoch, from 1.
    """
    chain = gradient_defence(settings.defence)
    perturbing = perturbation_generator("central", settings.seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=ADAM_RATE)
    order = torch.Generator().manual_seed(whole_seed("central order", settings.seed))
    for epoch in range(1, epochs + 1):
        with _noise(whole_seed("central noise", settings.seed, epoch)):
            images = torch.randperm(len(data.train), generator=order).tolist()
            for start in range(0, len(images), BATCH):
                batch = _batch(data, images[start : start + BATCH], device)
                gradients, _ = defended_gradient(model, batch, chain, perturbing, batch_norm=settings.batch_norm)
                for name, parameter in model.named_parameters():
                    parameter.grad = gradients[name]
                optimiser.step()
        yield epoch


def client_seconds(model: nn.Module, data: ImageData, settings: Settings, device: torch.device) -> float:
    """Seconds of CPU that a client spends on the defended gradient of one image; the least of five."""
    chain, taken = gradient_defence(settings.defence), []
    work = copy.deepcopy(model)
    for _ in range(5):
        began = time.process_time()
        defended_gradient(work, _batch(data, [0], device), chain, perturbation_generator("time"))
        taken.append(time.process_time() - began)
    return min(taken)


def observe_clients(
    model: nn.Module,
    data: ImageData,
    settings: Settings,
    clients: Sequence[Sequence[int]],
    device: torch.device,
) -> list[Observation]:
    """What the server sees of clients that hold these images, all at the weights that the model has.

    Args:
        model: The defended model, in any mode; it is left as it is.
        data: Image set.
        settings: Settings of the federation. A client under ``fedavg`` makes ``local_steps`` steps, each on
            ``batch_size`` images of its own.
        clients: For each client the indices of its training images, as many as its steps use, equally many for all.
        device: Where the clients compute.
    """
    size = settings.batch_size
    updates = []
    for number, indices in enumerate(clients):
        batches = [indices[start : start + size] for start in range(0, len(indices), size)]
        updates.append(client_reply(model, data, settings, batches, ("victim", number), device)[0])
    return observed(model, updates, kind=settings.kind, batch_size=len(clients[0]), protocol=settings.announced)


def client_reply(
    model: nn.Module,
    data: ImageData,
    settings: Settings,
    batches: Sequence[Sequence[int] | np.ndarray],
    who: tuple[str | int, int],
    device: torch.device,
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """What one client sends for these batches.

    Args:
        model: The model that the client received; it is left as it is.
        data: Image set.
        settings: Settings of the federation.
        batches: Indices of training images, one batch for each local step; of ``fedsgd`` the first counts.
        who: The client and the round, for its noise.
        device: Where the client computes.

    Returns:
        By parameter name its gradient, or trained minus received weights; and by name its buffers after the work.
    """
    work = copy.deepcopy(model)
    chain = gradient_defence(settings.defence)
    perturbing = perturbation_generator(settings.seed, *who)
    local_batches = [_batch(data, chosen, device) for chosen in batches]
    with _noise(whole_seed("client noise", settings.seed, *who)):
        if settings.protocol == "fedsgd":
            gradient, _ = defended_gradient(work, local_batches[0], chain, perturbing, batch_norm=settings.batch_norm)
            return gradient, _buffers(work)
        defended_training(
            work,
            local_batches,
            chain,
            perturbing,
            learning_rate=settings.learning_rate,
            optimiser=settings.local_optimiser,
            batch_norm=settings.batch_norm,
        )
    return change(model, work), _buffers(work)


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    """Those that travel with the model."""
    parameters = {name for name, _ in model.named_parameters()}
    return {name: value for name, value in model.state_dict().items() if name not in parameters}


def _batch(data: ImageData, indices: Sequence[int] | np.ndarray, device: torch.device) -> Batch:
    pictures, labels = data.train.batch(indices)
    return data.inputs.normalise(pictures).to(device), labels.to(device)


@cache
def _gpus() -> tuple[int, ...]:
    """Counted once: where there is none, torch looks for a driver at every question."""
    return tuple(range(torch.cuda.device_count()))


@contextmanager
def _noise(seed: int) -> Iterator[None]:
    """Torch's own generators, from which bottlenecks draw, start from the seed, on the CPU and on the GPU."""
    with torch.random.fork_rng(devices=_gpus()), sample_noise():
        torch.manual_seed(seed)
        yield
