"""Networks that people deploy, untrained, for images of any size and with a choice of normalisation."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer, convnext_tiny, densenet121, efficientnet_b0, resnet18

from benchmarks.transformers import photographs
from fl_precode.models import InputSpec, build_model

GROUPS: Final = 8
"""Of group normalisation; fewer where a layer's channels do not divide by it."""

SEEN: Final = 16
"""Photographs of the federation whose statistics batch normalisation has as its running ones."""


def grouped(model: nn.Module) -> nn.Module:
    """The same model with group normalisation in place of every batch normalisation, which starts as that does."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                groups = math.gcd(GROUPS, child.num_features)
                setattr(parent, name, nn.GroupNorm(groups, child.num_features, eps=child.eps))
    return model


def residual_20(inputs: InputSpec, norm: str = "batch") -> nn.Module:
    """The registered ResNet20 with four times the channels."""
    return _normed(build_model("resnet20:width=4", inputs, seed=0), norm, inputs)


def residual_18(inputs: InputSpec, norm: str = "batch") -> nn.Module:
    """torchvision's ResNet18."""
    return _normed(resnet18(num_classes=inputs.classes), norm, inputs)


def dense_121(inputs: InputSpec, norm: str = "batch") -> nn.Module:
    """torchvision's DenseNet121."""
    return _normed(densenet121(num_classes=inputs.classes), norm, inputs)


def efficient_b0(inputs: InputSpec, norm: str = "batch", random: int = 0) -> nn.Module:
    """torchvision's EfficientNet-B0; with ``random`` it has its dropout and stochastic depth."""
    drops = {} if random else {"dropout": 0.0, "stochastic_depth_prob": 0.0}
    return _normed(efficientnet_b0(num_classes=inputs.classes, **drops), norm, inputs)


def convnext(inputs: InputSpec) -> nn.Module:
    """torchvision's ConvNeXt-T without stochastic depth: layer normalisation, and a layer scale of 1e-6."""
    return convnext_tiny(num_classes=inputs.classes, stochastic_depth_prob=0.0)


def vit_b_32(inputs: InputSpec) -> nn.Module:
    """ViT-B/32 as torchvision has it, for images of this size."""
    return _transformer(inputs, patch=32, width=768, heads=12)


def vit_s(inputs: InputSpec) -> nn.Module:
    """ViT-S: patches of 8 for images of less than 224 pixels, of 16 for others."""
    return _transformer(inputs, patch=8 if inputs.height < 224 else 16, width=384, heads=6)


def _transformer(inputs: InputSpec, *, patch: int, width: int, heads: int) -> nn.Module:
    model = VisionTransformer(
        image_size=inputs.height,
        patch_size=patch,
        num_layers=12,
        num_heads=heads,
        hidden_dim=width,
        mlp_dim=4 * width,
        num_classes=inputs.classes,
    )
    # torchvision starts the head at zero, and no gradient would pass it.
    head = model.heads[-1]
    nn.init.normal_(head.weight, std=0.02)
    return model


def _normed(model: nn.Module, norm: str, inputs: InputSpec) -> nn.Module:
    if norm not in ("batch", "group"):
        raise ValueError(f"expected the normalisation batch or group, got {norm!r}")
    return grouped(model) if norm == "group" else calibrated(model, inputs)


def calibrated(model: nn.Module, inputs: InputSpec) -> nn.Module:
    """The same model with the running statistics of the federation's photographs, as after a round of training.

    With the statistics that PyTorch starts with, signals die out on their way, and so do the gradients.
    """
    size = (inputs.height, inputs.width)
    images = torch.stack(list(photographs(SEEN)))
    images = F.interpolate(images, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    layers = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 1.0
    model.train()
    with torch.no_grad():
        model(inputs.normalise(images))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.zero_()
    return model
