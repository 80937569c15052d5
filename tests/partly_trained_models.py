"""Models of which clients train a part: low-rank branches, adapters, biases, a head. For grey images of 8x8 pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LowRank(nn.Module):
    """A frozen Linear layer with a trained low-rank branch, as LoRA (Hu et al., ICLR 2022) has it."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.hidden, self.head = nn.Conv2d(1, 12, 3), nn.Linear(432, 24), nn.Linear(24, 10)

    def features(self, x: Tensor) -> Tensor:
        return torch.tanh(self.conv(x)).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(self.features(x))))


class Adapted(Backbone):
    """Bottleneck adapters (Houlsby et al., ICML 2019) behind frozen layers, and a trained head."""

    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)
        self.down, self.up = nn.Linear(432, 16), nn.Linear(16, 432)
        self.head.requires_grad_(True)

    def features(self, x: Tensor) -> Tensor:
        found = super().features(x)
        return found + self.up(torch.relu(self.down(found)))


def low_rank() -> nn.Module:
    """Low-rank branches on the hidden layer and the classifier, nothing else trained."""
    torch.manual_seed(0)
    model = Backbone().requires_grad_(False)
    model.hidden, model.head = LowRank(model.hidden, 8), LowRank(model.head, 4)
    return model


def adapters() -> nn.Module:
    torch.manual_seed(0)
    return Adapted()


def biases_only() -> nn.Module:
    """BitFit (Ben Zaken et al., ACL 2022)."""
    torch.manual_seed(0)
    model = Backbone()
    for name, value in model.named_parameters():
        value.requires_grad_(name.endswith("bias"))
    return model


def head_only() -> nn.Module:
    torch.manual_seed(0)
    model = Backbone().requires_grad_(False)
    model.head.requires_grad_(True)
    return model
