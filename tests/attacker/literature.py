"""Nets of Chen, Campbell (arXiv 2111.10178) and R-GAP (ICLR 2021), and small nets of other kinds."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacker.victim import Victim
from fl_precode.models.input_spec import InputSpec

INPUTS = InputSpec(channels=3, height=32, width=32, classes=10, mean=(0.5,) * 3, std=(1.0,) * 3)
Layer = tuple[int, int, int, int, int]
CHEN: dict[str, tuple[list[Layer], int]] = {
    "cnn2_c1": ([(3, 6, 3, 1, 0)], 5400),
    "cnn2_c2": ([(3, 6, 4, 2, 0)], 1350),
    "cnn3_c1": ([(3, 6, 3, 1, 0), (6, 3, 4, 2, 0)], 588),
    "cnn3_c2": ([(3, 6, 4, 2, 0), (6, 3, 3, 2, 0)], 147),
    "cnn4_c1": ([(3, 6, 3, 1, 0), (6, 5, 4, 2, 0), (5, 3, 4, 1, 0)], 363),
    "cnn4_c2": ([(3, 16, 5, 1, 0), (16, 6, 5, 2, 0), (6, 32, 5, 1, 2)], 4608),
    "cnn4_c3": ([(3, 6, 5, 1, 0), (6, 16, 5, 2, 0), (16, 16, 5, 1, 2)], 2304),
}
_TAIL: list[Layer] = [(36, 36, 3, 1, 1), (36, 64, 3, 2, 1), (64, 128, 3, 1, 1)]
RGAP: dict[str, list[Layer]] = {
    "cnn6": [(3, 12, 4, 2, 2), (12, 36, 3, 2, 1), (36, 36, 3, 1, 1), *_TAIL],
    "cnn6-d": [(3, 12, 4, 2, 2), (12, 20, 3, 2, 1), (20, 36, 3, 1, 1), *_TAIL],
}


def net(name: str) -> nn.Sequential:
    """A net of either paper, float64, ten classes, torch's default initialisation with seed 10."""
    torch.manual_seed(10)
    if name in CHEN:
        layers, features = CHEN[name]
        parts = [part for layer in layers for part in (nn.Conv2d(*layer, bias=False), nn.Tanh())]
        return nn.Sequential(*parts, nn.Flatten(), nn.Linear(features, 10)).double()
    parts = [part for layer in RGAP[name] for part in (nn.Conv2d(*layer, bias=False), nn.LeakyReLU(0.2))]
    return nn.Sequential(*parts[:-1], nn.Flatten(), nn.Linear(3200, 10, bias=False)).double()


class Residual(nn.Module):
    """A convolution with batch normalisation and a shortcut around it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        nn.init.uniform_(self.norm.running_mean, -0.5, 0.5)
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(self.norm(self.conv(x))) + x


class Attention(nn.Module):
    """Patches as tokens, one block of attention with layer normalisation, the mean token."""

    def __init__(self, channels: int, width: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, 2, 2)
        self.norm = nn.LayerNorm(width)
        self.mixed = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        query, key, value = self.mixed(self.norm(tokens)).chunk(3, dim=2)
        weights = (query @ key.transpose(1, 2) / math.sqrt(query.shape[2])).softmax(dim=2)
        return (tokens + self.out(weights @ value)).mean(dim=1)


def small(kind: str, inputs: InputSpec) -> nn.Module:
    """A net of some kind for images of a few pixels."""
    channels, size = inputs.channels, inputs.height * inputs.width
    if kind == "residual":
        head = nn.Linear(4 * size, inputs.classes)
        return nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), Residual(4), Residual(4), nn.Flatten(), head)
    if kind == "attention":
        return nn.Sequential(Attention(channels), nn.Linear(8, inputs.classes))
    if kind == "pooled":  # batch normalisation, ReLU and max-pooling in front of a Linear layer
        convolution = nn.Conv2d(channels, 6, 3, padding=1)
        return nn.Sequential(
            convolution, nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(6 * (size // 4), inputs.classes),
        )  # fmt: skip
    raise ValueError(kind)


def victim(name: str) -> Victim:
    return Victim(model=net(name), inputs=INPUTS, name=name)


def image(seed: int = 0, spec: InputSpec = INPUTS) -> Tensor:
    """(1, channels, height, width) in [0, 1], float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, *spec.shape, generator=generator, dtype=torch.float64)
