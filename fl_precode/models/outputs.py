"""Outputs of a model for a batch of images, and the class scores in them.

Models of other people return a tensor, a tuple of logits and features, a dict or an object with ``logits`` (as those of
Hugging Face do), one logit for a binary task, or no class scores at all, as autoencoders do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass

from torch import Tensor

_NAMES = ("logits", "logit", "scores", "out", "output", "outputs", "pred", "preds", "y_hat")


def class_scores(output: object, classes: int) -> Tensor | None:
    """The scores by which the images are classified, or None where the model returns none.

    In a dict or an object they are called ``logits``, else they are its first value that fits; in a tuple they are the
    first value, else the only one that fits.

    Args:
        output: What the model returned for ``n`` images.
        classes: Number of classes; of two, one logit is enough.

    Returns:
        (n, classes), or (n, 1) for one logit.

    >>> import torch
    >>> class_scores((torch.zeros(3, 10), torch.zeros(3, 64)), 10).shape
    torch.Size([3, 10])
    >>> class_scores({"logits": torch.zeros(3)}, 2).shape
    torch.Size([3, 1])
    >>> class_scores(torch.zeros(3, 1, 8, 8), 10) is None
    True
    """
    named = _named(output)
    if named is not None:
        for name in _NAMES:
            if (found := _fitting(named.get(name), classes)) is not None:
                return found
    values = list(named.values()) if named is not None else _several(output)
    if values is None:
        return _fitting(output, classes)
    fitting = [found for one in values if (found := _fitting(one, classes)) is not None]
    first = _fitting(values[0], classes) if values else None
    # Of several that fit, as the mean and the variance of an autoencoder's code may, none is known to be the scores.
    return first if first is not None else fitting[0] if len(fitting) == 1 else None


def is_plain(output: object) -> bool:
    """Whether the model returned one tensor and nothing beside it."""
    return isinstance(output, Tensor)


def output_tensors(output: object) -> Iterator[Tensor]:
    """All tensors in what a model returned, in its order."""
    if isinstance(output, Tensor):
        yield output
        return
    named = _named(output)
    for one in named.values() if named is not None else _several(output) or ():
        yield from output_tensors(one)


def describe_output(output: object) -> str:
    """What was returned, for messages: shapes of tensors, kinds of everything else.

    >>> import torch
    >>> describe_output((torch.zeros(2, 10), None))
    'a tuple of (2, 10), NoneType'
    """
    if isinstance(output, Tensor):
        return str(tuple(output.shape))
    named = _named(output)
    if named is not None:
        inside = ", ".join(f"{name}: {describe_output(value)}" for name, value in named.items())
        return f"a {type(output).__name__} of {inside or 'nothing'}"
    values = _several(output)
    if values is not None:
        return f"a {type(output).__name__} of {', '.join(map(describe_output, values)) or 'nothing'}"
    return type(output).__name__


def _fitting(value: object, classes: int) -> Tensor | None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return None
    if value.dim() == 2 and value.shape[1] == classes:
        return value
    if classes != 2:
        return None
    if value.dim() == 1:
        return value.unsqueeze(1)
    return value if value.dim() == 2 and value.shape[1] == 1 else None


def _named(output: object) -> Mapping[str, object] | None:
    if isinstance(output, Mapping):
        return {str(name): value for name, value in output.items()}
    if is_dataclass(output) and not isinstance(output, type):
        return {one.name: getattr(output, one.name) for one in fields(output)}
    if isinstance(output, tuple) and hasattr(output, "_asdict"):
        found: Mapping[str, object] = output._asdict()
        return found
    if isinstance(output, Tensor | tuple | list) or output is None:
        return None
    scores = getattr(output, "logits", None)  # an object of any class
    return {"logits": scores} if isinstance(scores, Tensor) else None


def _several(output: object) -> list[object] | None:
    return list(output) if isinstance(output, tuple | list) else None
