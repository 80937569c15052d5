"""Models by how their gradients can be replayed: from factors, by vmap, or one candidate after another."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fl_precode import VariationalBottleneck
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
        self.net = nn.Sequential(nn.LayerNorm(list(spec.shape)), tiny.mlp(spec))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) if float(x.detach().abs().max()) > 0 else self.net(-x)


def one_convolution(spec: InputSpec, **options: object) -> nn.Module:
    conv = nn.Conv2d(spec.channels, 4, **options)  # type: ignore[arg-type]
    features = conv(torch.zeros(1, *spec.shape)).numel()
    return nn.Sequential(conv, nn.ReLU(inplace=True), nn.MaxPool2d(1), nn.Flatten(), nn.Linear(features, spec.classes))


FACTORED = {
    "mlp": tiny.mlp,
    "mlp without bias": lambda spec: tiny.mlp(spec, bias=False),
    "wide mlp": lambda spec: tiny.mlp(spec, hidden=96),
    "mlp with bottleneck": lambda spec: tiny.mlp(spec, bottleneck=True),
    "convnet": tiny.convnet,
    "convnet with bottleneck": lambda spec: tiny.convnet(spec, bottleneck=True),
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
    "tokens": TokenModel,
    "constant and unused layers": Aside,
}
DENSE = {
    "mixing": Mixing,
    "reusing": Reusing,
    "twice": Twice,
    "batch norm": lambda spec: nn.Sequential(nn.BatchNorm2d(spec.channels), tiny.mlp(spec)),
}
LOOP = {
    "layer norm": lambda spec: nn.Sequential(nn.LayerNorm(list(spec.shape)), tiny.mlp(spec)),
    "instance norm": lambda spec: nn.Sequential(nn.InstanceNorm2d(spec.channels, affine=True), tiny.mlp(spec)),
    "branching": Branching,
}
