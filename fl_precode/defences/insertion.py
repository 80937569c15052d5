"""Insertion of a bottleneck into a model, whose place is found by running a copy of the model."""

from __future__ import annotations

import difflib
import logging
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fl_precode.defences.forward_trace import ForwardTrace, copied, passed_by, watch
from fl_precode.randomness.random_layers import Bottleneck

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Where a defence belongs when nobody names a place.

    Attributes:
        kind: The layers that count.
        index: Which of them, in order of execution.
        words: For messages.
        none: Advice when no such layer runs.
        few: Advice when there are some, but not enough.
        climbs: Whether the module that the layer is part of serves as well, when the output reaches around the layer.
        guarded: Whether a place directly behind a bottleneck is taken.
    """

    kind: type[nn.Module]
    index: int
    words: str
    none: str
    few: str = ""
    climbs: bool = False
    guarded: bool = True


CLASSIFIER = Wanted(
    kind=nn.Linear,
    index=-1,
    words="the last Linear layer",
    none="found no torch.nn.Linear layer that runs in the forward pass; name the module that the bottleneck shall "
    'stand in front of, such as before="classifier"',
)
SECOND_CONVOLUTION = Wanted(
    kind=nn.Conv2d,
    index=1,
    words="the second convolution",
    none="found no torch.nn.Conv2d layer that runs in the forward pass; a convolutional bottleneck needs feature maps. "
    "Use precode for this model",
    few="found only one torch.nn.Conv2d layer that runs in the forward pass; name a module that feature maps (batch, "
    "channels, height, width) enter with before=, or use precode for this model",
    climbs=True,
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """An insertion point.

    Attributes:
        name: Dotted name of the module that gets the bottleneck in front; "" for the model itself.
        shape: What enters it for one example; the first time, when it runs more than once.
        dtype: Data type of its parameters.
        device: Device of its parameters.
        calls: How often it runs in one forward pass.
        output_shape: Output shape of the model's output for the example input.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    calls: int
    output_shape: torch.Size


def check_model(model: nn.Module) -> None:
    """Refuse models whose modules cannot be replaced.

    Raises:
        ValueError: For a scripted, compiled or lazy model.
    """
    if isinstance(model, torch.jit.ScriptModule) or hasattr(model, "_orig_mod"):
        raise ValueError("a scripted or compiled model cannot be extended; extend the plain model, then compile it")
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise ValueError("the model has lazy layers without sizes yet; run it once on a batch, then extend it")


def find(model: nn.Module, example_input: Tensor, before: str | None, wanted: Wanted = CLASSIFIER) -> Place:
    """Find the wanted place, or the module named ``before``, and check that a bottleneck can go there.

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
    run = watch(copied(model), example_input, wanted.kind, before)
    if not isinstance(run.output, Tensor):
        raise ValueError(
            f"expected the model to return one tensor, got {type(run.output).__name__}; wrap it in a module that "
            "returns the logits"
        )
    name = _choose(run, before, wanted)
    place = _checked(model, run, name, example_input, wanted)
    if before is None and place.calls > 1:
        raise ValueError(
            f"ambiguous insertion point: {wanted.words}, {name!r}, runs {place.calls} times in a forward pass. "
            f"Choose with before=; {_candidates(wanted)}: {run.listed()}"
        )
    if not passed_by(model, example_input, name):
        return place
    above = _above(model, run, name, example_input, wanted) if before is None and wanted.climbs else None
    if above is None:
        _report_bypass(run, name, before, wanted)
    return above or place


def _candidates(wanted: Wanted) -> str:
    return f"{wanted.kind.__name__} layers in order of execution"


def _above(model: nn.Module, run: ForwardTrace, name: str, example_input: Tensor, wanted: Wanted) -> Place | None:
    """The smallest module around the layer that everything passes, and that leaves earlier layers of its kind out."""
    while name := name.rpartition(".")[0]:
        if any(f"{earlier}.".startswith(f"{name}.") for earlier in run.order[: wanted.index]):
            return None
        seen = watch(copied(model), example_input, wanted.kind, name)
        try:
            place = _checked(model, seen, name, example_input, wanted)
        except ValueError:  # such as a list of tensors that enters it
            continue
        if place.calls == 1 and not passed_by(model, example_input, name):
            return place
    return None


def _check_name(model: nn.Module, before: str) -> None:
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    if before not in names:
        last = before.rpartition(".")[2]
        near = difflib.get_close_matches(before, names, n=3, cutoff=0.5) or [
            name for name in names if name.rpartition(".")[2] == last
        ]
        hint = f"; did you mean {', '.join(map(repr, near))}?" if near else f"; it has {', '.join(names) or 'none'}"
        raise ValueError(f"the model has no module named {before!r}{hint}")
    if any(isinstance(module, Bottleneck) for module in _ancestors(model, before)):
        raise ValueError(f"{before!r} is part of a bottleneck already; extend the undefended model")


def _ancestors(model: nn.Module, name: str) -> list[nn.Module]:
    """The module and every one that it is part of."""
    parts = name.split(".")
    return [model.get_submodule(".".join(parts[:count])) for count in range(1, len(parts) + 1)]


def _choose(run: ForwardTrace, before: str | None, wanted: Wanted) -> str:
    if before is not None:
        if before not in run.inputs:
            raise ValueError(f"the module {before!r} does not run in the forward pass; choose one of: {run.listed()}")
        return before
    if not run.order:
        raise ValueError(wanted.none)
    if wanted.index >= len(run.order):
        raise ValueError(f"{wanted.few}; it is {run.listed()}")
    return run.order[wanted.index]


def _checked(model: nn.Module, run: ForwardTrace, name: str, example_input: Tensor, wanted: Wanted) -> Place:
    """The place, when one tensor of one size enters and no bottleneck stands there already."""
    shapes = []
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
        shapes.append(tuple(hidden.shape[1:]))
    sizes = {torch.Size(shape).numel() for shape in shapes}
    if len(sizes) > 1:
        raise ValueError(
            f"{name!r} runs on inputs of different sizes {sorted(sizes)}; one bottleneck cannot serve them"
        )
    target = model.get_submodule(name)
    if wanted.guarded:
        _check_free(target, run, name)
    like = next((p for p in target.parameters() if p.is_floating_point()), run.inputs[name][0])
    return Place(
        name=name,
        shape=shapes[0],
        dtype=like.dtype,
        device=like.device,
        calls=len(shapes),
        output_shape=run.output.shape,
    )


def _check_free(target: nn.Module, run: ForwardTrace, name: str) -> None:
    """Refuse a second bottleneck in the same place."""
    children = list(target.children())
    holds = isinstance(target, nn.Sequential) and children and isinstance(children[0], Bottleneck)
    if run.behind_bottleneck(name) or holds or isinstance(target, Bottleneck):
        raise ValueError(
            f"{name!r} has a bottleneck in front of it already; extend the undefended model, or name another place"
        )


def _report_bypass(run: ForwardTrace, name: str, before: str | None, wanted: Wanted) -> None:
    if before is None:
        raise ValueError(
            f"ambiguous insertion point: the output depends on the input by a way around {name!r} too (several heads, "
            f"or a shortcut). Choose with before= a module that everything passes; {_candidates(wanted)}: "
            f"{run.listed()}"
        )
    _log.warning(
        "the model's output also reaches around %r: a bottleneck there leaves part of the gradients without noise", name
    )
