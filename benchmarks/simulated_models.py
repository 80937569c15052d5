"""Small models of simulated audits, with some layers frozen where a case asks for it."""

from __future__ import annotations

import math

from torch import nn

from fl_precode.models import InputSpec, build_model


def perceptron(inputs: InputSpec, hidden: int = 48, depth: int = 2, frozen: int = 0) -> nn.Module:
    """Linear layers with ReLU, as the registered MLP but narrow; the first ``frozen`` Linear layers do not train."""
    sizes = [math.prod(inputs.shape), *[hidden] * depth]
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(before, after), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(sizes[-1], inputs.classes))
    for layer in [one for one in model if isinstance(one, nn.Linear)][:frozen]:
        layer.requires_grad_(False)
    return model


def partly_frozen(inputs: InputSpec, model: str = "lenet", first: int = 1) -> nn.Module:
    """A registered model whose first ``first`` parameters do not train; -2 leaves weights and bias of the last."""
    built = build_model(model, inputs, seed=0)
    for parameter in list(built.parameters())[:first]:
        parameter.requires_grad_(False)
    return built


def residual(inputs: InputSpec, head_only: bool = False) -> nn.Module:
    """torchvision's ResNet18 for these channels, as apps take it; with ``head_only`` only the last layer trains."""
    from torchvision.models import resnet18

    model = resnet18(num_classes=inputs.classes)
    model.conv1 = nn.Conv2d(inputs.channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    if head_only:
        model.requires_grad_(False)
        model.fc.requires_grad_(True)
    return model
