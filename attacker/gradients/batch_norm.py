"""Batch normalisation as clients in training mode compute it, for many candidates in one pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from attacker.gradients.uncompared_parameters import constants_of
from attacker.model_copy import copied

_BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


class BatchStatisticsNorm(nn.Module):
    """Normalises by the mean and variance of the batch (Ioffe, Szegedy, ICML 2015, algorithm 1), with no buffers.

    Written out in elementary operations, because torch's own kernel in training mode has a wrong second derivative
    under ``vmap`` (torch 2.15) and takes all images that pass together for one batch.

    Attributes:
        weight: (channels,) or None, the parameter of the layer in whose place it stands; ``bias`` likewise.
        images: Images that form one batch, neighbours in the input; 0 takes all that are passed together.
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__()
        for name in ("weight", "bias"):  # constants are buffers
            value = getattr(layer, name)
            if isinstance(value, nn.Parameter) or value is None:
                self.register_parameter(name, value)
            else:
                self.register_buffer(name, value)
        self.eps = layer.eps
        self.images = 0

    def normalised(self, x: Tensor) -> Tensor:
        """The input (images, channels, ...) with mean 0 and variance 1 in every batch and channel, not yet scaled."""
        batches = x.reshape(-1, self.images or len(x), *x.shape[1:])
        over = [1, *range(3, batches.dim())]
        centred = batches - batches.mean(dim=over, keepdim=True)
        # The biased variance; torch uses the unbiased one for its running buffers only.
        scale = (centred.square().mean(dim=over, keepdim=True) + self.eps).rsqrt()
        return (centred * scale).reshape(x.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, then scale and shift by channel."""
        out = self.normalised(x)
        shape = (1, -1, *[1] * (x.dim() - 2))
        if self.weight is not None:
            out = out * self.weight.reshape(shape)
        return out if self.bias is None else out + self.bias.reshape(shape)


def batch_norms(model: nn.Module) -> list[str]:
    """Names of the layers that normalise by running buffers in evaluation mode."""
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    return [name for name, module in layers if module.running_mean is not None]


def running_buffers(model: nn.Module) -> frozenset[str]:
    """Names of the buffers that those layers normalise by, or count with."""
    layers = [(name, model.get_submodule(name)) for name in batch_norms(model)]
    return frozenset(
        f"{name}.{buffer_name}" if name else buffer_name
        for name, layer in layers
        for buffer_name, _ in layer.named_buffers()
        if buffer_name not in constants_of(layer)
    )


def with_batch_statistics(model: nn.Module) -> nn.Module:
    """A copy of a model whose batch normalisation uses the statistics of the batch, as in training mode.

    Everything else stays in the mode that it is in; parameters keep their names, the buffers of those layers are gone.
    """
    changed = copied(model)
    for parent in list(changed.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm):
                setattr(parent, name, BatchStatisticsNorm(child))
    return BatchStatisticsNorm(changed) if isinstance(changed, _BatchNorm) else changed


@contextmanager
def batches_of(model: nn.Module, images: int) -> Iterator[None]:
    """Let every so many neighbouring images be one batch inside the block."""
    layers = [module for module in model.modules() if isinstance(module, BatchStatisticsNorm)]
    before = [layer.images for layer in layers]
    try:
        for layer in layers:
            layer.images = images
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.images = value
