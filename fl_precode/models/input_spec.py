"""The input domain of a model: shape, normalisation, box and number of classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """Public knowledge about the images that a model is trained on.

    Attributes:
        channels: Image channels, 1 or more.
        height: Pixels.
        width: Pixels.
        classes: Number of classes, at least 2.
        mean: Per-channel mean on the [0, 1] scale, length ``channels``.
        std: Per-channel standard deviation on the [0, 1] scale, positive, length ``channels``.
        scale_known: Whether ``mean`` and ``std`` are known. Otherwise they are placeholders, and no value of an input
            is impossible: nothing may be cut to [0, 1].

    Raises:
        ValueError: If a size is not positive, or mean and std do not fit the channels.
    """

    channels: int
    height: int
    width: int
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale_known: bool = True

    def __post_init__(self) -> None:
        if min(self.channels, self.height, self.width) < 1 or self.classes < 2:
            raise ValueError(
                f"expected positive channels, height, width and at least 2 classes, got {self.shape} and {self.classes}"
            )
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(
                f"expected one mean and one std for each of {self.channels} channels, "
                f"got {len(self.mean)} and {len(self.std)}"
            )
        if min(self.std) <= 0:
            raise ValueError(f"expected a positive std for each channel, got {self.std}")

    @classmethod
    def parse(cls, shape: str, classes: int) -> InputSpec:
        """The input domain of images of which only the shape is known: how they are normalised is not (`scale_known`).

        Args:
            shape: Channels x height x width, such as ``3x32x32``.
            classes: Number of classes.

        Raises:
            ValueError: If the shape is something else.

        >>> InputSpec.parse("1x8x8", 10).shape
        (1, 8, 8)
        """
        try:
            channels, height, width = (int(part) for part in shape.lower().split("x"))
        except ValueError:
            raise ValueError(f"expected channels x height x width, such as 3x32x32, got {shape!r}") from None
        mean, std = (0.0,) * channels, (1.0,) * channels
        return cls(
            channels=channels, height=height, width=width, classes=classes, mean=mean, std=std, scale_known=False
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return (self.channels, self.height, self.width)

    def _per_channel(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)

    def normalise(self, images: Tensor) -> Tensor:
        """Images in [0, 1], (..., channels, height, width), to the model's scale."""
        return (images - self._per_channel(self.mean, images)) / self._per_channel(self.std, images)

    def denormalise(self, inputs: Tensor) -> Tensor:
        """Model inputs, (..., channels, height, width), back to [0, 1] (not clamped)."""
        return inputs * self._per_channel(self.std, inputs) + self._per_channel(self.mean, inputs)

    def clamp(self, inputs: Tensor) -> Tensor:
        """Model inputs projected on the box of valid images; as they are where the scale is not known."""
        if not self.scale_known:
            return inputs
        low = self.normalise(torch.zeros((), dtype=inputs.dtype, device=inputs.device))
        high = self.normalise(torch.ones((), dtype=inputs.dtype, device=inputs.device))
        return torch.maximum(torch.minimum(inputs, high), low)

    def check(self, inputs: Tensor) -> None:
        """Refuse a batch that does not fit.

        Raises:
            ValueError: If ``inputs`` is not (batch, channels, height, width) of this shape.
        """
        if inputs.dim() != 4 or tuple(inputs.shape[1:]) != self.shape:
            raise ValueError(
                f"expected inputs of shape (batch, {', '.join(map(str, self.shape))}), got {tuple(inputs.shape)}"
            )
