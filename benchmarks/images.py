"""Real images for measurements: CIFAR-10 without loss from ../shared/data, else the embedded photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fl_precode.models.input_spec import InputSpec

CIFAR10 = Path(__file__).resolve().parents[1] / "../shared/data/cifar10/cifar10_lossless_subset.npz"
INPUTS = InputSpec(
    channels=3, height=32, width=32, classes=10, mean=(0.49147, 0.48226, 0.44677), std=(0.24703, 0.24349, 0.26159)
)


def first_images(count: int) -> tuple[str, Tensor, Tensor, InputSpec]:
    """Name of the data, images (count, 3, 32, 32) in [0, 1], labels (count,), input domain.

    The first training images of CIFAR-10 in the official order. The photographs repeat where they are too few.
    """
    if not CIFAR10.exists():
        from fl_precode.data import load_data

        data = load_data("photos")
        images, labels = data.train.batch([index % len(data.train) for index in range(count)])
        return "photos", images, labels, data.inputs
    with np.load(CIFAR10) as arrays:
        place = {wanted: row for row, wanted in enumerate(arrays["train_index"].tolist())}
        order = [place[wanted] for wanted in range(count)]
        pixels, labels = arrays["train_images"][order], arrays["train_labels"][order]
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return "cifar10", images, torch.from_numpy(labels).long(), INPUTS
