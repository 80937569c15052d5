"""The names, shapes and roles of a model's tensors, and which recorded arrays are which of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from torch import Tensor, nn

Shape = tuple[int, ...]

_WRAPPERS: Final = frozenset(
    {"module", "_module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
)
"""What DataParallel, Opacus, torch.compile, FSDP, checkpointing and Fabric put into names."""

_NUMBERED: Final = re.compile(r"(\D*)(\d+)")


@dataclass(frozen=True)
class MatchedArrays:
    """Which recorded array is which tensor of the model.

    Attributes:
        names: Recorded name to the model's.
        how: ``name``; ``prefix``, by name behind another prefix; or ``order``, for arrays without names.
        unknown: Recorded names that the model does not have.
    """

    names: Mapping[str, str]
    how: Literal["name", "prefix", "order"] = "name"
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ModelLayout:
    """A model as its state dict shows it.

    Attributes:
        shapes: Every tensor of the state dict to its shape, in order.
        parameters: Names of the parameters as ``named_parameters`` gives them, in order; tied ones once.
        tied: Further names in the state dict of parameters that are listed already.
        trained: Those of ``parameters`` that require gradients.
        classifier_bias: The bias of the last fully connected layer, where there is one.
        values: The tensors as the factory built them.
    """

    shapes: Mapping[str, Shape]
    parameters: tuple[str, ...]
    tied: frozenset[str] = frozenset()
    trained: frozenset[str] = frozenset()
    classifier_bias: str | None = None
    values: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def classifier_weight(self) -> str | None:
        """The weight beside ``classifier_bias``."""
        if self.classifier_bias is None:
            return None
        found = self.classifier_bias.removesuffix("bias") + "weight"
        return found if found in self.parameters else None

    @classmethod
    def of(cls, model: nn.Module) -> ModelLayout:
        """The layout of a model."""
        state = {name: value for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
        named = dict(model.named_parameters())
        listed = {id(value) for value in named.values()}
        tied = frozenset(name for name, value in state.items() if id(value) in listed and name not in named)
        return cls(
            shapes={name: tuple(value.shape) for name, value in state.items()},
            parameters=tuple(named),
            tied=tied,
            trained=frozenset(name for name, value in named.items() if value.requires_grad),
            classifier_bias=_classifier_bias(model),
            values={**{name: value.detach() for name, value in state.items()}, **dict(model.named_buffers())},
        )

    def match(self, given: Mapping[str, Shape]) -> MatchedArrays | None:
        """Which recorded arrays are which of the model's tensors; None when they belong to another model.

        Some of the model's tensors may be missing, or all be there beside others that it does not have; both at once
        is another model.
        """
        return self._by_name(given) or self._by_prefix(given) or self._by_order(given)

    def _by_name(self, given: Mapping[str, Shape], *, drop: str = "", add: str = "") -> MatchedArrays | None:
        own = {unwrapped(name): name for name in self.shapes}
        if len(own) != len(self.shapes):  # a module is really called so
            own = {name: name for name in self.shapes}
        found: dict[str, str] = {}
        unknown: list[str] = []
        for name, shape in given.items():
            wanted = add + name.removeprefix(drop)
            mine = wanted if wanted in self.shapes else own.get(unwrapped(wanted))
            if mine is None:
                unknown.append(name)
            elif self.shapes[mine] != shape:
                return None
            else:
                found[name] = mine
        if len(set(found.values())) < len(found) or not set(found.values()) & set(self.parameters):
            return None
        complete = {name for name in self.parameters if name in self.trained} <= set(found.values())
        return MatchedArrays(found, unknown=tuple(unknown)) if complete or not unknown else None

    def _by_prefix(self, given: Mapping[str, Shape]) -> MatchedArrays | None:
        first = next(iter(given), None)
        if first is None:
            return None
        shifts = {("", name[: -len(first)]) for name in self.shapes if name.endswith(f".{first}")}
        shifts |= {(first[: -len(name)], "") for name in self.shapes if first.endswith(f".{name}")}
        for drop, add in sorted(shifts, key=lambda pair: len(pair[0] + pair[1])):
            if all(name.startswith(drop) for name in given):
                found = self._by_name(given, drop=drop, add=add)
                if found is not None and not found.unknown:
                    return MatchedArrays(found.names, how="prefix")
        return None

    def _by_order(self, given: Mapping[str, Shape]) -> MatchedArrays | None:
        names = _in_order(list(given))
        if names is None:
            return None
        shapes = [given[name] for name in names]
        for own in self._orders():
            if [self.shapes[name] for name in own] == shapes:
                return MatchedArrays(dict(zip(names, own, strict=True)), how="order")
        return None

    def _orders(self) -> list[list[str]]:
        """Lists of tensors that apps send without names, the usual one first."""
        state = [name for name in self.shapes if name not in self.tied]
        trained = [name for name in self.parameters if name in self.trained]
        kept = [name for name in state if not name.endswith("num_batches_tracked")]
        return [list(self.shapes), state, list(self.parameters), trained, kept]


def unwrapped(name: str) -> str:
    """A name without what wrappers of models put into it.

    >>> unwrapped("_orig_mod.module.fc.weight")
    'fc.weight'
    """
    *path, last = name.split(".")
    return ".".join([*(part for part in path if part not in _WRAPPERS), last])


def _in_order(names: Sequence[str]) -> list[str] | None:
    """Names that are one word and consecutive numbers, by the numbers; None for others."""
    found = [_NUMBERED.fullmatch(name) for name in names]
    if not names or any(one is None for one in found) or len({one[1] for one in found if one}) > 1:
        return None
    numbers = {int(one[2]): name for one, name in zip(found, names, strict=True) if one}
    first = min(numbers)
    if first > 1 or sorted(numbers) != list(range(first, first + len(names))):
        return None
    return [numbers[number] for number in sorted(numbers)]


def _classifier_bias(model: nn.Module) -> str | None:
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    named = dict(model.named_parameters())
    bias = f"{layers[-1]}.bias".removeprefix(".") if layers else ""
    return bias if bias in named else None
