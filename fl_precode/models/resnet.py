"""The ResNet20 for small images (He et al., CVPR 2016, section 4.2), as wide as the literature on gradients has it."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import Tensor, nn

from fl_precode.models.input_spec import InputSpec
from fl_precode.models.norm import norm_layer

ResNetNorm = Literal["batch", "group"]  # without a normalisation its activations grow from block to block

_CHANNELS = (16, 32, 64)
_BLOCKS = 3


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut around them: ``relu2(norm2(conv2(relu1(norm1(conv1(x))))) + shortcut(x))``.

    The shortcut is the identity, or a 1x1 convolution with normalisation where the shape changes (the paper's option
    B).

    Args:
        before: Channels that enter.
        after: Channels that leave.
        stride: Stride of the first convolution.
        norm: Normalisation after each convolution.
    """

    def __init__(self, before: int, after: int, *, stride: int, norm: ResNetNorm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm1 = norm_layer(norm, after)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(after, after, kernel_size=3, padding=1, bias=False)
        self.norm2 = norm_layer(norm, after)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            projection = nn.Conv2d(before, after, kernel_size=1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(OrderedDict(conv=projection, norm=norm_layer(norm, after)))
        self.relu2 = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, before, height, width) to (batch, after, height / stride, width / stride), rounded up."""
        hidden = self.relu1(self.norm1(self.conv1(inputs)))
        out: Tensor = self.relu2(self.norm2(self.conv2(hidden)) + self.shortcut(inputs))
        return out


def build_resnet20(inputs: InputSpec, *, width: int = 1, norm: ResNetNorm = "batch") -> nn.Sequential:
    """A convolution, three stages of three blocks (16, 32, 64 channels; strides 1, 2, 2), global mean, one Linear.

    Convolutions are without bias and initialised as He et al. (ICCV 2015) propose, by the numbers that leave a channel.

    Args:
        inputs: Images of any size. Those of at most 4x4 pixels cannot be trained on one by one with batch
            normalisation, because the last stage leaves a single pixel of them.
        width: Factor of the channels, 1 or more; 4 gives the ResNet20-4 of Inverting Gradients (NeurIPS 2020).
        norm: After each convolution.

    >>> spec = InputSpec(channels=3, height=32, width=32, classes=10, mean=(0.5,) * 3, std=(0.5,) * 3)
    >>> [sum(p.numel() for p in build_resnet20(spec, width=width).parameters()) for width in (1, 4)]
    [272474, 4327754]
    """
    channels = _CHANNELS[0] * width
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(inputs.channels, channels, kernel_size=3, padding=1, bias=False),
        norm1=norm_layer(norm, channels),
        relu1=nn.ReLU(),
    )
    for stage, base in enumerate(_CHANNELS, start=1):
        layers[f"stage{stage}"] = _stage(channels, base * width, stride=1 if stage == 1 else 2, norm=norm)
        channels = base * width
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["classifier"] = nn.Linear(channels, inputs.classes)
    model = nn.Sequential(layers)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def _stage(before: int, after: int, *, stride: int, norm: ResNetNorm) -> nn.Sequential:
    """Blocks of which the first changes the shape."""
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    for number in range(1, _BLOCKS + 1):
        first = number == 1
        blocks[f"block{number}"] = BasicBlock(
            before if first else after, after, stride=stride if first else 1, norm=norm
        )
    return nn.Sequential(blocks)
