"""Models that an exact attack fits, by import path, and a data set of small colour images for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import nn

from fl_precode.data.registry import load_data
from fl_precode.models.input_spec import InputSpec
from tests.attacker.small_transformers import SIDE


def smooth_mlp(inputs: InputSpec, activation: str = "GELU") -> nn.Module:
    """Two layers with a smooth activation between them see the images: a batch is taken apart."""
    pixels, smooth = inputs.channels * inputs.height * inputs.width, getattr(nn, activation)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(pixels, 96), smooth(), nn.Linear(96, 48), smooth(), nn.Linear(48, inputs.classes)
    )


def normed(inputs: InputSpec) -> nn.Module:
    """Batch normalisation, whose statistics a client sends back."""
    side = (inputs.height - 2) * (inputs.width - 2)
    return nn.Sequential(
        nn.Conv2d(inputs.channels, 6, 3), nn.BatchNorm2d(6), nn.Sigmoid(), nn.Flatten(),
        nn.Linear(6 * side, inputs.classes),
    )  # fmt: skip


def pooled_head(inputs: InputSpec, width: int = 40) -> nn.Module:
    """A frozen trunk whose features are means over all places, as a pretrained network's are, and a trained head."""
    trunk = nn.Sequential(
        nn.Conv2d(inputs.channels, 16, 3), nn.GELU(), nn.Conv2d(16, width, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1)
    ).requires_grad_(False)
    return nn.Sequential(*trunk, nn.Flatten(), nn.Linear(width, inputs.classes))


def small_photographs(folder: Path, classes: int = 4) -> str:
    """Spec of a data set of photographs' patches, as small as the transformers take them."""
    images = load_data("photos").train.images[:40, :, :SIDE, :SIDE].numpy().transpose(0, 2, 3, 1)
    np.savez(folder / "small.npz", images=images, labels=np.arange(len(images)) % classes)
    return f"npz:{folder / 'small.npz'}"
