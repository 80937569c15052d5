"""Models and initialisations of the literature on leakage that the product does not carry."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fl_precode.seeding import seeded


def initialised(model: nn.Module, start: str, seed: int) -> nn.Module:
    """The model, redrawn: uniform U(-0.5, 0.5), normal N(0, 0.5²), kaiming, xavier (biases uniform), or left alone.

    The four of Zhang et al., I2F (NeurIPS 2023).
    """
    with seeded(seed):
        for parameter in model.parameters() if start != "default" else ():
            if start == "normal":
                nn.init.normal_(parameter, std=0.5)
            elif start == "uniform" or parameter.dim() == 1:
                nn.init.uniform_(parameter, -0.5, 0.5)
            elif start == "kaiming":
                nn.init.kaiming_uniform_(parameter, nonlinearity="sigmoid")
            else:
                nn.init.xavier_uniform_(parameter)
    return model


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., CVPR 2016)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        same = stride == 1 and before == after
        shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        self.shortcut: nn.Module = nn.Identity() if same else shortcut

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(hidden)) + self.shortcut(x))


def resnet18(classes: int) -> nn.Sequential:
    """ResNet18 for images of 32x32: a 3x3 stem without pooling, 64 to 512 channels, 11.2 million parameters."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    before = 64
    for after, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Block(before, after, stride), Block(after, after, 1)]
        before = after
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model
