"""The multilayer perceptron of PRECODE's experiments."""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import nn

from fl_precode.models.input_spec import InputSpec


def build_mlp(inputs: InputSpec) -> nn.Sequential:
    """Flatten, two hidden layers with ReLU, classifier: d-1024-1024-C.

    >>> spec = InputSpec(channels=3, height=32, width=32, classes=10, mean=(0.5,) * 3, std=(0.5,) * 3)
    >>> sum(p.numel() for p in build_mlp(spec).parameters())
    4206602
    """
    hidden = 1024
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(math.prod(inputs.shape), hidden),
            relu1=nn.ReLU(),
            fc2=nn.Linear(hidden, hidden),
            relu2=nn.ReLU(),
            classifier=nn.Linear(hidden, inputs.classes),
        )
    )
