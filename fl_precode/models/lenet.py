"""The LeNet of the gradient-inversion literature (DLG, NeurIPS 2019; PRECODE, WACV 2022)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch
from torch import nn

from fl_precode.models.input_spec import InputSpec

Activation = Literal["sigmoid", "relu"]


def build_lenet(inputs: InputSpec, *, activation: Activation = "sigmoid") -> nn.Sequential:
    """Three convolutions (12 channels, 5x5, padding 2; strides 2, 2, 1), an activation after each, one Linear.

    >>> spec = InputSpec(channels=3, height=32, width=32, classes=10, mean=(0.5,) * 3, std=(0.5,) * 3)
    >>> sum(p.numel() for p in build_lenet(spec).parameters())
    15826
    """
    act = nn.Sigmoid if activation == "sigmoid" else nn.ReLU
    # A 5x5 kernel with padding 2 and stride 2 halves a side, rounded up.
    height, width = (-(-side // 4) for side in (inputs.height, inputs.width))
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(inputs.channels, 12, kernel_size=5, padding=2, stride=2),
            act1=act(),
            conv2=nn.Conv2d(12, 12, kernel_size=5, padding=2, stride=2),
            act2=act(),
            conv3=nn.Conv2d(12, 12, kernel_size=5, padding=2, stride=1),
            act3=act(),
            flatten=nn.Flatten(),
            classifier=nn.Linear(12 * height * width, inputs.classes),
        )
    )


def init_uniform(model: nn.Module) -> None:
    """Redraw every parameter from U(-0.5, 0.5), the initialisation with which DLG (NeurIPS 2019) attacks its LeNet."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.5, 0.5)
