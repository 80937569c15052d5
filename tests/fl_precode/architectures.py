"""Models of other people's making, in the sizes that tests can afford."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet18
from torchvision.models.vgg import VGG, cfgs, make_layers
from torchvision.models.vision_transformer import VisionTransformer


class QuickstartNet(nn.Module):
    """In the manner of Flower's quickstart: functional activations, one pooling layer used twice, a view."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = x.view(-1, 16 * 5 * 5)
        x = F.relu(self.fc1(x))
        return self.fc3(F.relu(self.fc2(x)))


def resnet18_batch_norm():
    return resnet18(num_classes=10)


def resnet18_group_norm():
    return resnet18(num_classes=10, norm_layer=lambda channels: nn.GroupNorm(2, channels))


def vgg11():
    """VGG11's convolutions; its classifier of 124 million parameters is a small one here."""
    with torch.device("meta"):
        model = VGG(nn.Sequential(), num_classes=10, init_weights=False)
    model.features = make_layers(cfgs["A"])
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.classifier = nn.Sequential(nn.Linear(512, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, 10))
    return model


def vit():
    model = VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=10
    )
    nn.init.normal_(model.heads.head.weight)  # torchvision starts it at zero: no gradient would pass it
    return model


ARCHITECTURES = {
    "quickstart": QuickstartNet,
    "resnet18": resnet18_batch_norm,
    "resnet18-group-norm": resnet18_group_norm,
    "vgg11": vgg11,
    "vit": vit,
}
