"""Models of other people's making, for `package.module:factory`."""

from __future__ import annotations

import threading

import torch
from torch import nn


def convolutions_only(inputs):
    """A classifier without any Linear layer."""
    return nn.Sequential(nn.Conv2d(inputs.channels, inputs.classes, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def three_channels():
    """A model for colour images only."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


class Locked(nn.Module):
    """Holds what no copy can hold."""

    def __init__(self, inputs):
        super().__init__()
        self.lock = threading.Lock()
        pixels = inputs.channels * inputs.height * inputs.width
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(pixels, inputs.classes))

    def forward(self, images):
        return self.net(images)


class Mlp(nn.Module):
    """A network for grey 8x8 images that says nothing about itself."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, images):
        return self.last(torch.sigmoid(self.first(images.flatten(1))))


class Dropping(nn.Module):
    """Dropout that is no defence: the model has it anyway."""

    def __init__(self, share=0.3):
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(64, 64), nn.Dropout(share), nn.Linear(64, 10)

    def forward(self, images):
        return self.last(self.drop(torch.sigmoid(self.first(images.flatten(1)))))


class DroppingMaps(nn.Module):
    """Drops whole feature maps."""

    def __init__(self):
        super().__init__()
        self.conv, self.drop, self.last = nn.Conv2d(1, 12, 5, 2, 2), nn.Dropout2d(0.2), nn.Linear(192, 10)

    def forward(self, images):
        return self.last(self.drop(torch.sigmoid(self.conv(images))).flatten(1))


class OneLogit(nn.Module):
    """A binary classifier with one output, a logit or a probability."""

    def __init__(self, convolutions=False, probability=False):
        super().__init__()
        self.first = nn.Conv2d(1, 12, 5, 2, 2) if convolutions else nn.Linear(64, 192)
        self.last, self.convolutions, self.probability = nn.Linear(192, 1), convolutions, probability

    def forward(self, images):
        found = self.last(torch.sigmoid(self.first(images if self.convolutions else images.flatten(1))).flatten(1))
        return torch.sigmoid(found).squeeze(1) if self.probability else found


class Autoencoder(nn.Module):
    """Returns images, and is trained by their squared error."""

    def __init__(self):
        super().__init__()
        self.code, self.back = nn.Linear(64, 16), nn.Linear(16, 64)

    def forward(self, images):
        return self.back(torch.tanh(self.code(images.flatten(1)))).view_as(images)
