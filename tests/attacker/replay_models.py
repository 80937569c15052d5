"""Models by how their gradients can be replayed: from factors, by vmap, or one candidate after another."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.vision_transformer import VisionTransformer

from fl_precode import VariationalBottleneck
from fl_precode.defences.cvb import ConvBottleneck
from fl_precode.models.input_spec import InputSpec
from tests.attacker import tiny


class TokenModel(nn.Module):
    """A Linear layer that runs once on every row of the image."""

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.token = nn.Linear(spec.width, 5)
        self.head = nn.Linear(5 * spec.channels * spec.height, spec.classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.token(x)).flatten(1))


class Aside(nn.Module):
    """One layer sees a constant instead of the image, the output of another is thrown away."""

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.unused = nn.Linear(spec.width, 2)
        self.constant = nn.Linear(3, spec.classes)
        self.net = tiny.mlp(spec)

    def forward(self, x: Tensor) -> Tensor:
        self.unused(x)
        return self.net(x) * self.constant(x.new_ones(len(x), 3)).exp()


class Mixing(nn.Module):
    """Subtracts the batch mean: images mix although every layer is plain."""

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.net = tiny.mlp(spec)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x - x.mean(dim=0, keepdim=True))


class Reusing(nn.Module):
    """Uses a layer's weight a second time, without the layer."""

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.first = nn.Linear(spec.height * spec.width * spec.channels, spec.classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x.flatten(1)) + F.linear(x.flatten(1).cos(), self.first.weight)


class Twice(nn.Module):
    """Runs one layer twice."""

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        d = spec.height * spec.width * spec.channels
        self.step = nn.Linear(d, d)
        self.head = nn.Linear(d, spec.classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.step(self.step(x.flatten(1)).tanh()))


class Branching(nn.Module):
    """Looks at values in Python, which vmap cannot do."""

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.net = Shared(spec)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) if float(x.detach().abs().max()) > 0 else self.net(-x)


class Shared(nn.Module):
    """Runs one LayerNorm twice."""

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(spec.width)
        self.net = tiny.mlp(spec)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.norm(self.norm(x).tanh()))


class Residual(nn.Module):
    """A residual block with batch norm and activations that overwrite their input, by module and by function."""

    def __init__(self, spec: InputSpec, channels: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(spec.channels, channels, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(settle(nn.BatchNorm2d(channels)) for _ in range(2))
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(channels, spec.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norms[0](self.stem(x)))
        x = F.relu_(self.norms[1](self.conv(x)) + x)
        return self.head(x.mean((2, 3)))


class Norms(nn.Module):
    """Group norm, instance norm with running statistics, and layer norm over tokens, two of them without a shift."""

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.conv = nn.Conv2d(spec.channels, 4, 2)
        self.group = nn.GroupNorm(2, 4)
        self.instance = settle(nn.InstanceNorm2d(4, affine=True, track_running_stats=True))
        self.tokens = nn.LayerNorm([4, spec.width - 1], bias=False)
        self.plain = nn.BatchNorm2d(4, affine=False)
        self.head = nn.Linear(4 * (spec.height - 1) * (spec.width - 1), spec.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.instance(torch.tanh(self.group(self.conv(x))))
        x = self.tokens(x.transpose(1, 2)).transpose(1, 2)
        return self.head(self.plain(torch.tanh(x)).flatten(1))


class Viewing(nn.Module):
    """`torch.Tensor.view` twice, which only channels first allow: between the halves of a shuffle, and to flatten."""

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(spec.channels, 4, 3, padding=1), nn.Conv2d(4, 6, 3)
        self.head = nn.Linear(6 * (spec.height - 2) * (spec.width - 2), spec.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        x = x.view(len(x), 2, 2, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
        x = torch.relu(self.second(x))
        return self.head(x.view(x.size(0), -1))


class ThroughView(nn.Module):
    """Writes through a view, which another memory layout would make a copy."""

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.conv = nn.Conv2d(spec.channels, 4, 3)
        self.head = nn.Linear(4 * (spec.height - 2) * (spec.width - 2), spec.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x.view(len(x), -1).mul_(3)
        return self.head(x.flatten(1).sin())


class TokensFirst(nn.Module):
    """Attention on (tokens, images, features), the default order of `torch.nn.MultiheadAttention`."""

    def __init__(self, spec: InputSpec, *, causal: bool = False) -> None:
        super().__init__()
        self.token = nn.Linear(spec.width, 6)
        self.attention = nn.MultiheadAttention(6, 2)
        self.head = nn.Linear(6, spec.classes)
        length = spec.channels * spec.height
        self.mask = torch.ones(length, length, dtype=torch.bool).triu(1) if causal else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.token(x).flatten(1, 2).transpose(0, 1)
        x = x + self.attention(x, x, x, need_weights=True, attn_mask=self.mask)[0]
        return self.head(x.transpose(0, 1).mean(1))


class TokenNet(nn.Module):
    """A transformer as timm writes it: attention by function, a class token and positions of the model itself."""

    def __init__(self, spec: InputSpec, features: int = 6) -> None:
        super().__init__()
        self.patches = nn.Conv2d(spec.channels, features, 2, stride=2)
        self.cls_token = nn.Parameter(torch.randn(1, 1, features))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + (spec.height // 2) * (spec.width // 2), features))
        self.norm, self.qkv, self.proj = (
            nn.LayerNorm(features), nn.Linear(features, 3 * features, bias=False), nn.Linear(features, features)
        )  # fmt: skip
        self.head = nn.Linear(features, spec.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        return self.head((x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))[:, 0])


def vision_transformer(spec: InputSpec) -> nn.Module:
    """torchvision's, with five tokens."""
    model = VisionTransformer(6, 3, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=6, num_classes=spec.classes)
    return nn.Sequential(nn.Conv2d(spec.channels, 3, 1), nn.ZeroPad2d((0, 1, 0, 1)), drawn(model))


def convnext(spec: InputSpec) -> nn.Module:
    """torchvision's, with two stages."""
    stages = [CNBlockConfig(4, 6, 2), CNBlockConfig(6, None, 1)]
    model = ConvNeXt(stages, stochastic_depth_prob=0.1, num_classes=spec.classes)
    return nn.Sequential(nn.Conv2d(spec.channels, 3, 1), nn.ZeroPad2d((1, 2, 1, 2)), drawn(model))


def drawn(model: nn.Module) -> nn.Module:
    """Random parameters where the published initial values are zeros, or hide a layer."""
    for value in model.parameters():
        nn.init.normal_(value, std=0.4)
    return model


def settle(norm: nn.Module) -> nn.Module:
    """Running statistics and scales that are not the identity."""
    for name, value in (*norm.named_buffers(), *norm.named_parameters()):
        if name != "num_batches_tracked":
            value.data.copy_(torch.rand_like(value) + 0.5)
    return norm


def one_convolution(spec: InputSpec, *, channels: int = 4, **options: object) -> nn.Module:
    conv = nn.Conv2d(spec.channels, channels, **options)  # type: ignore[arg-type]
    features = conv(torch.zeros(1, *spec.shape)).numel()
    return nn.Sequential(conv, nn.ReLU(inplace=True), nn.MaxPool2d(1), nn.Flatten(), nn.Linear(features, spec.classes))


FACTORED = {
    "mlp": tiny.mlp,
    "mlp without bias": lambda spec: tiny.mlp(spec, bias=False),
    "wide mlp": lambda spec: tiny.mlp(spec, hidden=96),
    "mlp with bottleneck": lambda spec: tiny.mlp(spec, bottleneck=True),
    "convnet": tiny.convnet,
    "convnet with bottleneck": lambda spec: tiny.convnet(spec, bottleneck=True),
    "convolutional bottleneck": lambda spec: nn.Sequential(
        nn.Conv2d(spec.channels, 3, 3),
        ConvBottleneck(3, 2, kernel=3, beta=0.1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(27, spec.classes),
    ),
    "two bottlenecks": lambda spec: nn.Sequential(
        nn.Flatten(),
        VariationalBottleneck(spec.channels * spec.height * spec.width, latent=3),
        tiny.mlp(spec, bottleneck=True),
    ),
    "conv same": lambda spec: one_convolution(spec, kernel_size=(2, 3), padding="same"),
    "conv valid, no bias": lambda spec: one_convolution(spec, kernel_size=3, padding="valid", bias=False),
    "conv groups": lambda spec: one_convolution(spec, kernel_size=3, groups=spec.channels, stride=(1, 2)),
    "conv dilated, reflected": lambda spec: one_convolution(
        spec, kernel_size=2, dilation=2, padding=(1, 2), padding_mode="reflect"
    ),
    "conv few places": lambda spec: one_convolution(spec, kernel_size=4, channels=48, stride=3, padding=(0, 2)),
    "conv few places, groups": lambda spec: one_convolution(
        spec, kernel_size=3, channels=64, groups=spec.channels, dilation=2
    ),
    "depthwise": lambda spec: nn.Sequential(
        nn.Conv2d(spec.channels, 4 * spec.channels, 3, padding=1, groups=spec.channels),
        nn.Conv2d(4 * spec.channels, 3, 1),
        tiny.mlp(dataclasses.replace(spec, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)),
    ),
    "batch norm": lambda spec: nn.Sequential(nn.BatchNorm2d(spec.channels), tiny.mlp(spec)),
    "residual with batch norm": Residual,
    "norms": Norms,
    "batch norm of features": lambda spec: nn.Sequential(
        nn.Flatten(), settle(nn.BatchNorm1d(spec.channels * spec.height * spec.width)), tiny.mlp(spec)
    ),
    "layer norm": lambda spec: nn.Sequential(nn.LayerNorm(list(spec.shape)), tiny.mlp(spec)),
    "instance norm": lambda spec: nn.Sequential(nn.InstanceNorm2d(spec.channels, affine=True), tiny.mlp(spec)),
    "tokens": TokenModel,
    "constant and unused layers": Aside,
    "views": Viewing,
    "attention, tokens first": TokensFirst,
    "class token and positions": TokenNet,
    "vision transformer": vision_transformer,
    "convnext": convnext,
}
DENSE = {
    "mixing": Mixing,
    "reusing": Reusing,
    "twice": Twice,
    "writing through a view": ThroughView,
    "causal attention": lambda spec: TokensFirst(spec, causal=True),
}
LOOP = {
    "shared layer norm": Shared,
    "batch norm by batches": lambda spec: nn.Sequential(
        nn.BatchNorm2d(spec.channels, track_running_stats=False), tiny.mlp(spec)
    ),
    "branching": Branching,
}
