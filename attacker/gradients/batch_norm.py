"""Batch normalisation as clients in training mode compute it, for many candidates in one pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
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


class KnownStatisticsNorm(BatchStatisticsNorm):
    """Normalises by a mean and variance that are known to be those of the client's batch.

    The client's gradient goes through its batch's statistics too. So that a candidate's does, while its values are
    normalised by what is known, a pass inside `with_reference` adds the difference between the candidate's statistics
    and those of a reference pass at the same weights: zero in value, and right in every derivative.

    Attributes:
        running_mean: (channels,), of the client's batch.
        running_var: (channels,), likewise, unbiased.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__(layer)
        for name in ("running_mean", "running_var"):
            self.register_buffer(name, getattr(layer, name).detach().clone())
        self._reference: list[tuple[Tensor, Tensor]] = []
        self._notes = False

    def normalised(self, x: Tensor) -> Tensor:
        """The input (images, channels, ...) without the known mean, over the root of the known variance."""
        batches = x.reshape(-1, self.images or len(x), *x.shape[1:])
        over = [1, *range(3, batches.dim())]
        values = batches[:1, :, :1].numel()
        shape = (1, 1, -1, *[1] * (x.dim() - 2))
        mean = self.running_mean.reshape(shape)
        variance = self.running_var.reshape(shape) * ((values - 1) / values)
        if self._notes or self._reference:
            own_mean = batches.mean(dim=over, keepdim=True)
            own = own_mean, (batches - own_mean).square().mean(dim=over, keepdim=True)
            if self._notes:
                self._reference.append(own)
            else:
                first = self._reference.pop(0)
                mean, variance = mean + (own[0] - first[0]), variance + (own[1] - first[1])
        return ((batches - mean) * (variance + self.eps).rsqrt()).reshape(x.shape)


@contextmanager
def with_reference(model: nn.Module, reference: Callable[[], object]) -> Iterator[None]:
    """Let known statistics have the derivatives of the batch's own inside the block.

    Args:
        model: Its layers of known statistics are taken; without any nothing happens.
        reference: The same forward pass at weights that nobody differentiates by.
    """
    layers = [module for module in model.modules() if isinstance(module, KnownStatisticsNorm)]
    if not layers:
        yield
        return
    try:
        for layer in layers:
            layer._reference, layer._notes = [], True
        reference()
        for layer in layers:
            layer._notes = False
        yield
    finally:
        for layer in layers:
            layer._reference, layer._notes = [], False


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
    return _exchanged(model, BatchStatisticsNorm, None)


def with_known_statistics(model: nn.Module, names: Collection[str]) -> nn.Module:
    """A copy of a model in which these layers normalise by the statistics of the batch, which are in their buffers.

    Args:
        model: Stays as it is.
        names: Names of layers that `batch_norms` names; the others go on by their running statistics.
    """
    return _exchanged(model, KnownStatisticsNorm, frozenset(names))


def _exchanged(model: nn.Module, kind: type[BatchStatisticsNorm], names: Collection[str] | None) -> nn.Module:
    changed = copied(model)
    chosen = {
        module
        for name, module in changed.named_modules()
        if isinstance(module, _BatchNorm) and (names is None or name in names)
    }
    for parent in list(changed.modules()):
        for name, child in list(parent.named_children()):
            if child in chosen:
                assert isinstance(child, _BatchNorm)
                setattr(parent, name, kind(child))
    return kind(changed) if isinstance(changed, _BatchNorm) and changed in chosen else changed


@contextmanager
def batches_of(model: nn.Module, images: int) -> Iterator[None]:
    """Let groups of neighbouring images be one batch each inside the block."""
    layers = [module for module in model.modules() if isinstance(module, BatchStatisticsNorm)]
    before = [layer.images for layer in layers]
    try:
        for layer in layers:
            layer.images = images
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.images = value
