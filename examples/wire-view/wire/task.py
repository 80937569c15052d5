"""Three clients, one photograph each, and one step of training."""

from __future__ import annotations

import torch
from skimage import data, transform
from torch import Tensor, nn
from torch.nn import functional as F

CLIENTS = 3
CLIPPING = 0.05
SETTINGS = ("no privacy", "server-side DP", "client-side clipping", "local DP")


class Net(nn.Sequential):
    """A small convolutional network for colour images of 32x32 pixels."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 12, 5, padding=2, stride=2),
            nn.GELU(),
            nn.Conv2d(12, 12, 5, padding=2, stride=2),
            nn.GELU(),
            nn.Conv2d(12, 12, 5, padding=2),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(12 * 8 * 8, CLIENTS),
        )


def load_data(client: int) -> tuple[Tensor, Tensor]:
    """A client's image (1, 3, 32, 32) in [0, 1] and label (1,)."""
    photo = (data.astronaut()[:280, 90:370], data.chelsea()[:, 70:370], data.coffee()[:, 100:500])[client]
    image = transform.resize(photo, (32, 32), anti_aliasing=True)
    return torch.tensor(image, dtype=torch.float32).permute(2, 0, 1)[None], torch.tensor([client])


def train(model: nn.Module, client: int, learning_rate: float) -> None:
    """One step of SGD."""
    images, labels = load_data(client)
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()
