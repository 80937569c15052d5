"""Random images for what does not depend on what is to be seen, such as ranks and speed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fl_precode.models.input_spec import InputSpec

_COARSE = 5


def smooth_images(count: int, inputs: InputSpec, *, seed: int) -> tuple[Tensor, Tensor]:
    """Random images without sharp edges and random labels.

    Args:
        count: Images.
        inputs: Their shape and the number of classes.
        seed: Seed of both.

    Returns:
        (count, channels, height, width) in [0, 1], and (count,) class indices.
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, inputs.channels, _COARSE, _COARSE, generator=generator)
    size = (inputs.height, inputs.width)
    images = F.interpolate(coarse, size=size, mode="bilinear", align_corners=True)
    return images, torch.randint(inputs.classes, (count,), generator=generator)
