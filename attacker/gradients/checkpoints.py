"""Gradient checkpointing switched off: it runs a part of the model again in the backward pass, with other weights.

A replay exchanges the model's weights for the length of the forward pass. What `torch.utils.checkpoint` computes again
later, it computes with those of the model itself: the gradients would be wrong, and nothing would say so.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.utils import checkpoint


class _Once:
    """In place of torch's ``CheckpointFunction``: runs the function as it is."""

    @staticmethod
    def apply(function: Callable[..., Tensor], _preserve: bool, *arguments: object) -> Tensor:
        return function(*arguments)


def _nothing(*_arguments: object, **_settings: object) -> Generator[None, None, None]:
    """In place of what torch does before and after a checkpointed function."""
    yield


_PARTS: dict[str, object] = {
    "CheckpointFunction": _Once,
    "_checkpoint_without_reentrant_generator": _nothing,
    "_checkpoint_without_reentrant_generator_impl": _nothing,  # its name in newer versions of torch
}


@contextmanager
def without_checkpoints() -> Iterator[None]:
    """Inside the block checkpointed functions are simply called: the same values, for more memory."""
    originals = {name: getattr(checkpoint, name) for name in _PARTS if hasattr(checkpoint, name)}
    try:
        for name in originals:
            setattr(checkpoint, name, _PARTS[name])
        yield
    finally:
        for name, value in originals.items():
            setattr(checkpoint, name, value)
