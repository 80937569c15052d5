"""The ConvNet of Inverting Gradients (Geiping et al., NeurIPS 2020)."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from fl_precode.models.input_spec import InputSpec
from fl_precode.models.norm import Norm, norm_layer

_MULTIPLES = (1, 2, 2, 4, 4, 4, 4, 4)  # of the width: the channels after each convolution
_POOL = 3
_POOLED = (6, 8)  # the convolutions that a max-pool follows, counted from 1


def build_convnet(inputs: InputSpec, *, width: int = 64, norm: Norm = "batch") -> nn.Sequential:
    """Eight convolutions (3x3, padding 1, with bias), each with normalisation and ReLU; two max-pools of 3; one Linear.

    Channels are 1, 2, 2, 4, 4, 4 times the width, then after the first pool twice 4 times the width.

    Args:
        inputs: Images of at least 9x9 pixels, of which the pools leave one.
        width: Channels of the first convolution, 1 or more.
        norm: After each convolution; the paper's has batch normalisation.

    Raises:
        ValueError: If the images are too small for the pools.

    >>> spec = InputSpec(channels=3, height=32, width=32, classes=10, mean=(0.5,) * 3, std=(0.5,) * 3)
    >>> sum(p.numel() for p in build_convnet(spec).parameters())
    2904970
    """
    least = _POOL ** len(_POOLED)
    if min(inputs.height, inputs.width) < least:
        raise ValueError(
            f"convnet pools images {len(_POOLED)} times by {_POOL} and needs at least {least}x{least} pixels, got "
            f"{inputs.height}x{inputs.width}; choose a data set with larger images, or another model such as resnet20"
        )
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = inputs.channels
    for number, multiple in enumerate(_MULTIPLES, start=1):
        layers[f"conv{number}"] = nn.Conv2d(channels, multiple * width, kernel_size=3, padding=1)
        channels = multiple * width
        if norm != "none":
            layers[f"norm{number}"] = norm_layer(norm, channels)
        layers[f"relu{number}"] = nn.ReLU()
        if number in _POOLED:
            layers[f"pool{_POOLED.index(number) + 1}"] = nn.MaxPool2d(_POOL)
    layers["flatten"] = nn.Flatten()
    layers["classifier"] = nn.Linear(channels * (inputs.height // least) * (inputs.width // least), inputs.classes)
    return nn.Sequential(layers)
