"""One forward pass of a copy of a model, watched: which layers ran, on what, and what the output depends on."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fl_precode.randomness.random_layers import Bottleneck, track_kl
from fl_precode.randomness.seeding import undisturbed_rng

_log = logging.getLogger(__name__)


@dataclass
class ForwardTrace:
    """What was seen in one forward pass.

    Attributes:
        order: Names of the watched modules, as they ran.
        inputs: What entered each of them, once for each time it ran; a tensor, or arguments where it was no lone one.
        output: Output of the model.
    """

    order: list[str] = field(default_factory=list)
    inputs: dict[str, list[Any]] = field(default_factory=dict)
    output: Any = None
    _guarded: set[int] = field(default_factory=set)  # storage of bottleneck outputs
    _kept: list[Tensor] = field(default_factory=list)  # keeps those storages from being reused

    def listed(self) -> str:
        """The watched modules that ran, for messages."""
        return ", ".join(map(repr, dict.fromkeys(self.order))) or "none ran"

    def behind_bottleneck(self, name: str) -> bool:
        """Whether a bottleneck's output enters the module as it is."""
        return any(hidden.untyped_storage().data_ptr() in self._guarded for hidden in self.inputs[name])


def equal_copy(model: nn.Module) -> nn.Module:
    """A copy of somebody's model, which stays as it is.

    Raises:
        ValueError: If the model cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:  # a foreign model may hold anything
        raise ValueError(
            f"the model {type(model).__name__} cannot be copied: {type(error).__name__}: {error}. Expected one that "
            "copy.deepcopy can copy. If it stores tensors of a forward pass on a module, extend a fresh one; open "
            "files, locks, generators and connections belong outside of the model"
        ) from error


def copied(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode.

    Raises:
        ValueError: If the model cannot be copied.
    """
    return equal_copy(model).eval()


def watch(probe: nn.Module, example_input: Tensor, kind: type[nn.Module], also: str | None = None) -> ForwardTrace:
    """Run the probe once; record the layers of a kind that are no bottleneck's own, and the module named ``also``.

    Raises:
        ValueError: If the probe cannot run the example.
    """
    run = ForwardTrace()
    inner = {child for module in probe.modules() if isinstance(module, Bottleneck) for child in module.children()}

    def enter(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            run.order.append(name)
            run.inputs.setdefault(name, []).append(args[0] if len(args) == 1 and not kwargs else (args, kwargs))

        return hook

    def guarded(_module: nn.Module, _args: Any, output: Tensor) -> None:
        run._kept.append(output)
        run._guarded.add(output.untyped_storage().data_ptr())

    for name, module in probe.named_modules():
        if isinstance(module, Bottleneck):
            module.register_forward_hook(guarded)
        if also is not None and module is probe.get_submodule(also):
            module.register_forward_pre_hook(enter(also), with_kwargs=True)
        elif isinstance(module, kind) and module not in inner:
            module.register_forward_pre_hook(enter(name), with_kwargs=True)
    try:
        with undisturbed_rng(), torch.no_grad(), track_kl():
            run.output = probe(example_input)
    except Exception as error:
        raise ValueError(
            f"the model cannot run example_input of shape {tuple(example_input.shape)}, {example_input.dtype}: "
            f"{error}. Give a batch as in training, on the model's device"
        ) from error
    return run


def passed_by(model: nn.Module, example_input: Tensor, name: str) -> bool:
    """Whether the output depends on the input by a way around the module: cut the module's output and look."""
    probe = copied(model).requires_grad_(False)
    reached: list[bool] = []

    def mark(module: nn.Module, _args: Any, output: Any) -> Any:
        fresh = isinstance(output, Tensor) and output.is_floating_point() and not output.requires_grad
        if reached or not fresh or any(True for _ in module.children()):
            return output
        return output.detach().requires_grad_() * 1  # not a leaf: models may work on it in place

    def cut(_module: nn.Module, _args: Any, output: Any) -> Any:
        reached.append(True)
        return output.detach() if isinstance(output, Tensor) else output

    start = example_input
    if example_input.is_floating_point():
        start = example_input.detach().clone().requires_grad_() * 1
    else:  # token ids carry no gradient: start from what the first layers make of them
        for module in probe.modules():
            module.register_forward_hook(mark)
    probe.get_submodule(name).register_forward_hook(cut)
    try:
        with undisturbed_rng(), torch.enable_grad(), track_kl():
            output: Tensor = probe(start)
    except RuntimeError as error:  # such as code that turns activations into numpy arrays
        _log.warning("could not check whether the output reaches around %r: %s", name, error)
        return False
    return output.requires_grad
