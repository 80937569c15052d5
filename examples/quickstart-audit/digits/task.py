"""The model, the images and the training: nothing here knows of federated learning."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F


class Net(nn.Module):
    """A small convolutional network for grey 8x8 images of ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 12, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(12, 12, kernel_size=3, padding=1, stride=2)
        self.fc = nn.Linear(12 * 4 * 4, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Images (batch, 1, 8, 8) in [0, 1] to logits (batch, 10)."""
        features = torch.sigmoid(self.conv1(images))
        features = torch.sigmoid(self.conv2(features))
        return self.fc(features.flatten(1))


def load_data(partition_id: int, images_per_client: int) -> tuple[Tensor, Tensor]:
    """One client's images (n, 1, 8, 8) in [0, 1] and labels (n,)."""
    images, labels = _digits()
    own = slice(partition_id * images_per_client, (partition_id + 1) * images_per_client)
    return images[own], labels[own]


def load_test_data() -> tuple[Tensor, Tensor]:
    """The last 360 images, which no client has."""
    images, labels = _digits()
    return images[-360:], labels[-360:]


def _digits() -> tuple[Tensor, Tensor]:
    loaded = load_digits()
    images = torch.tensor(loaded.images / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(loaded.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(42))
    return images[order], labels[order]


def train(
    model: nn.Module, images: Tensor, labels: Tensor, *, epochs: int, batch_size: int, learning_rate: float
) -> float:
    """Plain SGD; returns the mean loss."""
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    model.train()
    losses = []
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(batch_size):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def test(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean loss and accuracy."""
    model.eval()
    logits = model(images)
    return F.cross_entropy(logits, labels).item(), (logits.argmax(dim=1) == labels).float().mean().item()
