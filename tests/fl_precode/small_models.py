"""Models small enough to reason about, in the shapes that people write them."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn


def plain():
    return nn.Sequential(OrderedDict(fc1=nn.Linear(6, 5), act=nn.ReLU(), fc2=nn.Linear(5, 3)))


class Net(nn.Module):
    """A CNN with batch norm, dropout and a functional flatten."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4 * 8 * 8, 3)

    def forward(self, x):
        return self.head(self.drop(torch.relu(self.norm(self.conv(x)))).flatten(1))


class Model(nn.Module):
    """Layers by name and a forward function of one's own."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def lin(size_in=4, size_out=4):
    return nn.Linear(size_in, size_out)
