"""Copies of models, so that what an audit does to a model is not done to its owner's."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn


class ModelCopyError(ValueError):
    """A model cannot be copied, and an audit works on nothing but a copy."""


def own_copy(model: nn.Module) -> nn.Module:
    """A copy of somebody's model, which stays as it is.

    Raises:
        ModelCopyError: If it cannot be copied.
    """
    try:
        return copied(model)
    except Exception as error:  # a foreign model may hold anything
        raise ModelCopyError(
            f"the model {type(model).__name__} cannot be copied: {type(error).__name__}: {error}. Expected a model "
            "that copy.deepcopy can copy, because attacks change what they work on and your model must stay as it is. "
            "Keep open files, locks, generators and connections outside of the model, or give it a __deepcopy__ that "
            "leaves them out"
        ) from error


def check_runs_alone(copy_of_it: nn.Module, original: nn.Module, outputs: Iterable[Tensor]) -> None:
    """Refuse a copy that runs layers of the model that it was made of.

    A function that was set as a layer's ``forward``, or hooked, and holds on to the model itself, is copied with it as
    it is. Such a copy would be replayed at weights that are not those of the update.

    Args:
        copy_of_it: The copy.
        original: The model.
        outputs: What the copy gave, with its graph.

    Raises:
        ModelCopyError: If a weight of the original was used.
    """
    own_ids = {id(value) for value in copy_of_it.parameters()}
    others = {id(value): name for name, value in original.named_parameters() if id(value) not in own_ids}
    nodes: list[Any] = [output.grad_fn for output in outputs if output.grad_fn is not None]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        name = others.get(id(getattr(node, "variable", None)))
        if name is not None:
            raise ModelCopyError(
                f"the model {type(original).__name__} cannot be copied: its copy still uses {name!r} of the model "
                "itself. Expected a model whose layers find each other by attributes; a function that was set as "
                "forward or as a hook and names the model must be a method of a class"
            )
        further = {function for function, _ in node.next_functions if function is not None} - seen
        seen |= further
        nodes += further


def copied(model: nn.Module) -> nn.Module:
    """A deep copy, also of a model whose layers keep what they computed in the last pass (spectral norm)."""
    memo: dict[int, object] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(model, memo)
