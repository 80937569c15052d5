"""Where in a model a bottleneck goes: found by running a copy of the model and watching it."""

from __future__ import annotations

import copy
import difflib
import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fl_precode.bottleneck import VariationalBottleneck, track_kl
from fl_precode.seeding import undisturbed_rng

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Place:
    """An insertion point.

    Attributes:
        name: Dotted name of the module that gets the bottleneck in front; "" for the model itself.
        features: Numbers per example that enter it.
        dtype: Of its parameters.
        device: Of its parameters.
        calls: How often it runs in one forward pass.
        bottlenecks: How many bottlenecks ran in the forward pass already.
        output_shape: Of the model's output for the example input.
    """

    name: str
    features: int
    dtype: torch.dtype
    device: torch.device
    calls: int
    bottlenecks: int
    output_shape: torch.Size


@dataclass
class _Run:
    """What was seen in one forward pass."""

    order: list[str] = field(default_factory=list)  # names of the watched modules, as they ran
    inputs: dict[str, list[Any]] = field(default_factory=dict)
    guarded_storage: set[int] = field(default_factory=set)  # storage of bottleneck outputs
    kept: list[Tensor] = field(default_factory=list)  # keeps those storages from being reused
    output: Any = None
    bottlenecks: int = 0


def check_model(model: nn.Module) -> None:
    """Refuse models whose modules cannot be replaced.

    Raises:
        ValueError: For a scripted, compiled or lazy model.
    """
    if isinstance(model, torch.jit.ScriptModule) or hasattr(model, "_orig_mod"):
        raise ValueError("a scripted or compiled model cannot be extended; extend the plain model, then compile it")
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise ValueError("the model has lazy layers without sizes yet; run it once on a batch, then extend it")


def find(model: nn.Module, example_input: Tensor, before: str | None) -> Place:
    """Find the last Linear layer that runs, or the module named ``before``, and check that a bottleneck can go there.

    Raises:
        ValueError: As `fl_precode.extend` says.
    """
    if not isinstance(example_input, Tensor) or example_input.dim() < 2:
        got = tuple(example_input.shape) if isinstance(example_input, Tensor) else type(example_input).__name__
        raise ValueError(
            f"expected example_input to be a batch, (batch, ...), such as torch.zeros(1, 3, 32, 32); got {got}"
        )
    if before is not None:
        _check_name(model, before)
    probe = _copy(model)
    run = _watch(probe, example_input, before)
    if not isinstance(run.output, Tensor):
        raise ValueError(
            f"expected the model to return one tensor, got {type(run.output).__name__}; wrap it in a module that "
            "returns the logits"
        )
    name = _choose(run, before)
    place = _place(probe, run, name, example_input)
    _check_free(probe.get_submodule(name), run, name)
    if before is None and place.calls > 1:
        raise ValueError(
            f"ambiguous insertion point: the last Linear layer, {name!r}, runs {place.calls} times in a forward pass. "
            f"Choose with before=; Linear layers in order of execution: {_listed(run)}"
        )
    if _passed_by(model, example_input, name):
        _report_bypass(run, name, before)
    return place


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model).eval()
    except Exception as error:
        raise ValueError(
            f"the model cannot be copied ({error}); it probably stores tensors of a forward pass on a module, extend a "
            "fresh one"
        ) from error


def _check_name(model: nn.Module, before: str) -> None:
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    if before not in names:
        last = before.rpartition(".")[2]
        near = difflib.get_close_matches(before, names, n=3, cutoff=0.5) or [
            name for name in names if name.rpartition(".")[2] == last
        ]
        hint = f"; did you mean {', '.join(map(repr, near))}?" if near else f"; it has {', '.join(names) or 'none'}"
        raise ValueError(f"the model has no module named {before!r}{hint}")
    if any(isinstance(module, VariationalBottleneck) for module in _ancestors(model, before)):
        raise ValueError(f"{before!r} is part of a bottleneck already; extend the undefended model")


def _ancestors(model: nn.Module, name: str) -> list[nn.Module]:
    """The module and every one that it is part of."""
    parts = name.split(".")
    return [model.get_submodule(".".join(parts[:count])) for count in range(1, len(parts) + 1)]


def _watch(probe: nn.Module, example_input: Tensor, before: str | None) -> _Run:
    """Run the probe once; record the Linear layers that are no bottleneck's own, and the module named ``before``."""
    run = _Run()
    inner = {
        child for module in probe.modules() if isinstance(module, VariationalBottleneck) for child in module.children()
    }

    def enter(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            run.order.append(name)
            run.inputs.setdefault(name, []).append(args[0] if len(args) == 1 and not kwargs else (args, kwargs))

        return hook

    def guarded(_module: nn.Module, _args: Any, output: Tensor) -> None:
        run.kept.append(output)
        run.guarded_storage.add(output.untyped_storage().data_ptr())

    for name, module in probe.named_modules():
        if isinstance(module, VariationalBottleneck):
            module.register_forward_hook(guarded)
        if before is not None and module is probe.get_submodule(before):
            module.register_forward_pre_hook(enter(before), with_kwargs=True)
        elif isinstance(module, nn.Linear) and module not in inner:
            module.register_forward_pre_hook(enter(name), with_kwargs=True)
    try:
        with undisturbed_rng(), torch.no_grad(), track_kl() as kl:
            run.output = probe(example_input)
    except Exception as error:
        raise ValueError(
            f"the model cannot run example_input of shape {tuple(example_input.shape)}, {example_input.dtype}: "
            f"{error}. Give a batch as in training, on the model's device"
        ) from error
    run.bottlenecks = len(kl)
    return run


def _choose(run: _Run, before: str | None) -> str:
    if before is not None:
        if before not in run.inputs:
            raise ValueError(f"the module {before!r} does not run in the forward pass; choose one of: {_listed(run)}")
        return before
    if not run.order:
        raise ValueError(
            "found no torch.nn.Linear layer that runs in the forward pass; name the module that the bottleneck shall "
            'stand in front of, such as before="classifier"'
        )
    return run.order[-1]


def _listed(run: _Run) -> str:
    return ", ".join(map(repr, dict.fromkeys(run.order))) or "none ran"


def _place(probe: nn.Module, run: _Run, name: str, example_input: Tensor) -> Place:
    features = set()
    for hidden in run.inputs[name]:
        if not isinstance(hidden, Tensor) or not hidden.is_floating_point() or hidden.dim() < 2:
            raise ValueError(
                f"expected one floating-point tensor (batch, ...) to enter {name!r}; choose another with before="
            )
        if hidden.shape[0] != example_input.shape[0]:
            raise ValueError(
                f"expected the batch of {example_input.shape[0]} first in what enters {name!r}, got "
                f"{tuple(hidden.shape)}; choose another place with before="
            )
        features.add(hidden[0].numel())
    if len(features) > 1:
        raise ValueError(
            f"{name!r} runs on inputs of different sizes {sorted(features)}; one bottleneck cannot serve them"
        )
    like = next((p for p in probe.get_submodule(name).parameters() if p.is_floating_point()), run.inputs[name][0])
    return Place(
        name=name,
        features=features.pop(),
        dtype=like.dtype,
        device=like.device,
        calls=len(run.inputs[name]),
        bottlenecks=run.bottlenecks,
        output_shape=run.output.shape,
    )


def _check_free(target: nn.Module, run: _Run, name: str) -> None:
    """Refuse a second bottleneck in the same place."""
    children = list(target.children())
    behind = any(hidden.untyped_storage().data_ptr() in run.guarded_storage for hidden in run.inputs[name])
    holds = isinstance(target, nn.Sequential) and children and isinstance(children[0], VariationalBottleneck)
    if behind or holds or isinstance(target, VariationalBottleneck):
        raise ValueError(
            f"{name!r} has a bottleneck in front of it already; extend the undefended model, or name another place"
        )


def _passed_by(model: nn.Module, example_input: Tensor, name: str) -> bool:
    """Whether the output depends on the input by a way around the module: cut the module's output and look."""
    probe = _copy(model).requires_grad_(False)
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
        with undisturbed_rng(), torch.enable_grad():
            output: Tensor = probe(start)
    except RuntimeError as error:  # such as code that turns activations into numpy arrays
        _log.warning("could not check whether the output reaches around %r: %s", name, error)
        return False
    return output.requires_grad


def _report_bypass(run: _Run, name: str, before: str | None) -> None:
    if before is None:
        raise ValueError(
            f"ambiguous insertion point: the output depends on the input by a way around {name!r} too (several heads, "
            "or a shortcut). Choose with before= a module that everything passes; Linear layers in order of execution: "
            f"{_listed(run)}"
        )
    _log.warning(
        "the model's output also reaches around %r: a bottleneck there leaves part of the gradients without noise", name
    )
